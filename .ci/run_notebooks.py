"""Run notebooks in a fresh kernel and store their outputs. Cells that nbdev_test skips (`#| eval: false`, `#| slow` and the like) keep what they have."""
import sys
import time
from pathlib import Path

import nbformat
from execnb.nbio import mk_cell
from nbclient import NotebookClient
from nbdev.config import get_config
from nbdev.process import extract_directives

FLAGS = set(get_config().tst_flags.split())


def skipped(cell):
    directives = extract_directives(mk_cell(cell.source), remove=False)
    return directives.get("eval:", [""])[0].lower() == "false" or bool(FLAGS & directives.keys()) or "nbdev_export(" in cell.source


class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        return cell if skipped(cell) else await super().async_execute_cell(cell, cell_index, **kwargs)


for path in map(Path, sys.argv[1:]):
    start, nb = time.time(), nbformat.read(path, as_version=4)
    Client(nb, timeout=None, record_timing=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(nb, path)
    print(f"{path}: {time.time() - start:.0f} s", flush=True)
