"""Run notebooks from top to bottom in a fresh kernel, store their outputs, and mark them with a digest of code and outputs, so that stale ones can be told.

    run_notebooks.py NB...     run these
    run_notebooks.py           run those whose outputs are stale
    run_notebooks.py --check   run nothing; one line for each stale notebook, exit code 1 if there is any

Cells that nbdev_test skips (`#| eval: false`, `#| slow` and the like) keep what they have.
"""
import hashlib
import json
import re
import sys
import time
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


def skipped(cell):
    directives = extract_directives(mk_cell(cell.source), remove=False)
    return directives.get("eval:", [""])[0].lower() == "false" or bool(FLAGS & directives.keys()) or "nbdev_export(" in cell.source


class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        return cell if skipped(cell) else await super().async_execute_cell(cell, cell_index, **kwargs)


def digest(nb, results):
    "Of every code cell with its outputs and, where the code quotes the folder `results`, of the files in it"
    cells = [(c.source, c.outputs) for c in nb.cells if c.cell_type == "code"]
    made = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    if any(QUOTES_RESULTS.search(source) for source, _ in cells):
        for path in sorted(p for p in results.rglob("*") if p.is_file()):
            made.update(path.relative_to(results).as_posix().encode() + path.read_bytes())
    return made.hexdigest()[:16]


def stale(nb, results):
    "Why the stored outputs are not those of a run of this code; '' if they are"
    errors = [o.ename for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    if errors:
        return f"an error is stored as output: {errors[0]}"
    marked = nb.metadata.get(KEY, {}).get("ran")
    return "" if marked == digest(nb, results) else "code, outputs or quoted results changed since it was run" if marked else "its outputs were not stored by `make notebooks`"


def run(path, results):
    start, nb = time.time(), nbformat.read(path, as_version=4)
    Client(nb, timeout=None, record_timing=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(nb, path)
    nbdev_clean(str(path))
    nb = nbformat.read(path, as_version=4)
    nb.metadata[KEY] = {"ran": digest(nb, results)}
    nbformat.write(nb, path)
    print(f"{path}: {time.time() - start:.0f} s", flush=True)


def main(args):
    nbs = get_config().nbs_path
    found = {path: stale(nbformat.read(path, as_version=4), nbs / "results") for path in sorted(map(Path, nbglob(nbs)))}
    if args == ["--check"]:
        lines = [f"{path.relative_to(nbs.parent) if path.is_absolute() else path}: {why}" for path, why in found.items() if why]
        return "\n".join([*lines, "run `make notebooks`, look, commit"]) if lines else 0
    for path in map(Path, args or [p for p, why in found.items() if why]):
        run(path, nbs / "results")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
