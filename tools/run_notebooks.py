"""Run notebooks from top to bottom in a fresh kernel, store their outputs, mark them with a digest of what made them.

    run_notebooks.py NB...     run these
    run_notebooks.py           run those whose outputs are stale
    run_notebooks.py --check   run nothing; one line for each stale notebook, exit code 1 if there is any

Cells that nbdev_test skips (`#| eval: false`, `#| slow` and the like) keep what they have. Comments, docstrings and
text cells are no part of the digest: words may change and nothing becomes stale.
"""

import ast
import hashlib
import json
import os
import re
import sys
import time
import tokenize
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from execnb.nbio import mk_cell
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.process import extract_directives

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

FLAGS = set(get_config().tst_flags.split())
KEY = "liverdis"  # among settings.ini's allowed_metadata_keys, so nbdev_clean leaves it
PACKAGES = "liverdis", "benchmarks"  # whose modules count for the digest
RUNS_COMMAND = re.compile(r"""get_path\(['"]scripts['"]\)\) / ['"]liverdis['"]""")
QUOTES_RESULTS = re.compile(r"""['"](\.\./)*results\b""")


def skipped(cell):
    """Whether nbdev_test would not run this cell."""
    directives = extract_directives(mk_cell(cell.source), remove=False)
    return directives.get("eval:", [""])[0].lower() == "false" or bool(FLAGS & directives.keys())


class Client(NotebookClient):
    """Runs the cells that nbdev_test would run."""

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        return cell if skipped(cell) else await super().async_execute_cell(cell, cell_index, **kwargs)


# -- the digest --------------------------------------------------------------------------------------------------------


def code_of(source):
    """Python without comments and docstrings, directives of cells kept; what is no Python stays as it is."""
    try:
        docs = [n.body[0] for n in ast.walk(ast.parse(source)) if _has_docstring(n)]
        comments = [t for t in tokenize.generate_tokens(StringIO(source).readline) if t.type == tokenize.COMMENT]
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.splitlines()
    for comment in comments:
        row, column = comment.start
        if not comment.string.startswith("#|"):
            lines[row - 1] = lines[row - 1][:column]
    for doc in docs:
        lines[doc.lineno - 1 : doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _has_docstring(node):
    holders = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    return isinstance(node, holders) and ast.get_docstring(node) is not None


def module_file(name, root):
    """The file of a module of ours by its full name; None if it is none, or a package without code."""
    if name.split(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*name.split("."))
    candidates = path.with_suffix(".py"), path / "__init__.py"
    return next((p for p in candidates if p.is_file() and p.stat().st_size), None)


def modules_used(sources, root):
    """Code of our modules that `sources` import, or start as a command, and of those that these import, by file."""
    code, todo = {}, set().union(*(notebooks.imported(notebooks.parse(s)) for s in sources))
    if any(RUNS_COMMAND.search(s) for s in sources):
        todo.add("liverdis.use.cli")
    while todo:
        name = todo.pop()
        path = module_file(name, root)
        if path and path not in code:
            full_name = f"{name}.__init__" if path.stem == "__init__" else name
            code[path], imports = _code_and_imports(path.read_text(encoding="utf-8"), full_name)
            todo |= imports
    return {path.relative_to(root).as_posix(): text for path, text in code.items()}


@cache  # most notebooks use the same modules
def _code_and_imports(text, name):
    return code_of(text), notebooks.imported(ast.parse(text), name)


def files_used(sources, modules, root):
    """Files that are read when the code runs: `nbs/results` where a cell quotes it, a package's templates."""
    folders = [root / "nbs/results"] if any(QUOTES_RESULTS.search(s) for s in sources) else []
    if any("templates" in text for text in modules.values()):
        folders.append(root / "liverdis/templates")
    return [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]


def digest(nb, root):
    """Of the code cells with their outputs, and of the modules and files that they use."""
    cells = [c for c in nb.cells if c.cell_type == "code"]
    sources = [c.source for c in cells]
    modules = modules_used(sources, root)
    made = hashlib.sha256(json.dumps([(code_of(c.source), c.outputs) for c in cells], sort_keys=True).encode())
    made.update(json.dumps(sorted(modules.items())).encode())
    for path in files_used(sources, modules, root):
        made.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return made.hexdigest()[:16]


def stale(nb, root):
    """Why the stored outputs are not those of a run of this code; '' if they are."""
    errors = [o.ename for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    if errors:
        return f"an error is stored as output: {errors[0]}"
    marked = nb.metadata.get(KEY, {}).get("ran")
    if not marked:
        return "its outputs were not stored by `make notebooks`"
    if marked != digest(nb, root):
        return "its code, its outputs, a module or a result it uses changed since it was run"
    return ""


# -- running -----------------------------------------------------------------------------------------------------------


def run(path, root):
    """Run one notebook in its folder and store it, marked."""
    start, nb = time.time(), nbformat.read(path, as_version=4)
    client = Client(nb, timeout=None, record_timing=False, resources={"metadata": {"path": str(path.parent)}})
    with TemporaryDirectory() as tmp:  # sockets in a folder of its own: two kernels may choose one port
        client.km = AsyncKernelManager(transport="ipc", connection_file=f"{tmp}/kernel.json")
        client.execute()
    nbformat.write(nb, path)
    nbdev_clean(str(path))
    nb = nbformat.read(path, as_version=4)
    nb.metadata[KEY] = {"ran": digest(nb, root)}
    nbformat.write(nb, path)
    print(f"{path.relative_to(root)}: {time.time() - start:.0f} s", flush=True)


def run_all(paths, root):
    """Run notebooks side by side; returns a line for each that failed."""
    failed = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [(path, pool.submit(run, path, root)) for path in paths]
        for path, job in jobs:
            if error := job.exception():
                failed.append(f"{path.relative_to(root)}: {error}")
    return failed


def main(args):
    """The command line, see the top; returns what sys.exit takes."""
    root = get_config().config_path.resolve()
    if args and args != ["--check"]:
        return "\n".join(run_all([Path(a).resolve() for a in args], root)) or 0
    found = notebooks.find(root)
    reasons = {
        found[n].path: stale(nbformat.read(found[n].path, as_version=4), root) for n in notebooks.in_order(found)
    }
    reasons = {path: why for path, why in reasons.items() if why}
    if args == ["--check"]:
        lines = [f"{path.relative_to(root)}: {why}" for path, why in reasons.items()]
        return "\n".join([*lines, "run `make notebooks`, look, commit"]) if lines else 0
    return "\n".join(run_all(reasons, root)) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
