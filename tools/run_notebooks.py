"""Run notebooks from top to bottom in a fresh kernel, store their outputs, and mark them with a digest of what made them, so that stale ones can be told.

    run_notebooks.py NB...     run these
    run_notebooks.py           run those whose outputs are stale
    run_notebooks.py --check   run nothing; one line for each stale notebook, exit code 1 if there is any

Cells that nbdev_test skips (`#| eval: false`, `#| slow` and the like) keep what they have.
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
from pathlib import Path

import nbformat
from execnb.nbio import mk_cell
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives

FLAGS = set(get_config().tst_flags.split())
KEY = "liverdis"  # among settings.ini's allowed_metadata_keys, so nbdev_clean leaves it
QUOTES_RESULTS = re.compile(r"""['"](\.\./)?results\b""")
IMPORTS = re.compile(
    r"^\s*(?:from (?:liverdis)?\.(\w+) import|import liverdis\.(\w+)|from liverdis import ([\w, ]+))", re.M
)


def skipped(cell):
    directives = extract_directives(mk_cell(cell.source), remove=False)
    return (
        directives.get("eval:", [""])[0].lower() == "false"
        or bool(FLAGS & directives.keys())
        or "nbdev_export(" in cell.source
    )


class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        return cell if skipped(cell) else await super().async_execute_cell(cell, cell_index, **kwargs)


def imported(source):
    return {name.strip() for names in IMPORTS.findall(source) for name in ",".join(names).split(",") if name.strip()}


def code_of(path):
    "A module without comments and docstrings: what a change of words does not change"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with path.open("rb") as f:
        comments = [t.start for t in tokenize.tokenize(f.readline) if t.type == tokenize.COMMENT]
    docs = [
        n.body[0]
        for n in ast.walk(ast.parse("".join(lines)))
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(n) is not None
    ]
    for line, column in comments:
        lines[line - 1] = lines[line - 1][:column]
    for doc in docs:
        lines[doc.lineno - 1 : doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def digest(nb, root):
    "Of the code cells with their outputs, of the modules they import and those import, and of `nbs/results` where the code quotes it"
    cells = [(c.source, c.outputs) for c in nb.cells if c.cell_type == "code"]
    made = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    code, todo = {}, imported("\n".join(source for source, _ in cells))
    while todo:
        path = root / "liverdis" / f"{todo.pop()}.py"
        if path.exists() and path.stem not in code:
            code[path.stem] = code_of(path)
            todo |= imported(code[path.stem])
    made.update(json.dumps(sorted(code.items())).encode())
    if any(QUOTES_RESULTS.search(source) for source, _ in cells):
        results = root / "nbs/results"
        for path in sorted(p for p in results.rglob("*") if p.is_file()):
            made.update(path.relative_to(results).as_posix().encode() + path.read_bytes())
    return made.hexdigest()[:16]


def stale(nb, root):
    "Why the stored outputs are not those of a run of this code; '' if they are"
    errors = [o.ename for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    if errors:
        return f"an error is stored as output: {errors[0]}"
    marked = nb.metadata.get(KEY, {}).get("ran")
    if not marked:
        return "its outputs were not stored by `make notebooks`"
    return (
        ""
        if marked == digest(nb, root)
        else "its code, its outputs, a module or a result it uses changed since it was run"
    )


def run(path, root):
    start, nb = time.time(), nbformat.read(path, as_version=4)
    Client(nb, timeout=None, record_timing=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(nb, path)
    nbdev_clean(str(path))
    nb = nbformat.read(path, as_version=4)
    nb.metadata[KEY] = {"ran": digest(nb, root)}
    nbformat.write(nb, path)
    print(f"{path.relative_to(root)}: {time.time() - start:.0f} s", flush=True)


def main(args):
    root = get_config().config_path.resolve()
    found = {
        path: stale(nbformat.read(path, as_version=4), root)
        for path in sorted(Path(p).resolve() for p in nbglob(get_config().nbs_path))
    }
    if args == ["--check"]:
        lines = [f"{path.relative_to(root)}: {why}" for path, why in found.items() if why]
        return "\n".join([*lines, "run `make notebooks`, look, commit"]) if lines else 0
    todo = [Path(a).resolve() for a in args] or [p for p, why in found.items() if why]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        failed = [(p, e) for p, job in [(p, pool.submit(run, p, root)) for p in todo] if (e := job.exception())]
    return "\n".join(f"{p.relative_to(root)}: {e}" for p, e in failed) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
