"""What a manifest of 200,000 lesions costs to read, to check against its files, and to write again.

    large_manifest.py [--rows 200000]

All rows share one image and one outline, as small as files can be, so that this is the cost of the table and not of a
disk. Seconds of one processor and the memory of the process go to nbs/results/attacks/large_manifest.csv.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from liverdis.cohort.manifest import file_checksum, load_manifest, save_manifest, verify_files
from liverdis.core import CLASSES

RESULTS = Path(__file__).parents[1] / "nbs/results/attacks/large_manifest.csv"


def write_rows(folder: Path, n: int) -> Path:
    """A manifest of `n` good rows, two of every patient."""
    for name in ("ct.dcm", "seg.dcm"):
        (folder / name).write_text(name)
    rows = pd.DataFrame({"case_id": [f"c{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)]})
    rows = rows.assign(
        series_uid="1.2", image_path="ct.dcm", annotation_path="seg.dcm", annotation_kind="seg", segment="2"
    )
    rows = rows.assign(label=[CLASSES[i % 4] for i in range(n)], phase="portal", row_spacing_mm=0.7, col_spacing_mm=0.7)
    checksum = file_checksum(folder / "ct.dcm", folder / "seg.dcm")
    rows.assign(slice_thickness_mm=2.5, sha256=checksum).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    n, took = parser.parse_args().rows, {}

    def timed(step: str, work: Callable, *args: object) -> object:
        began = time.process_time()
        done = work(*args)
        took[f"{step}_s"] = round(time.process_time() - began, 1)
        return done

    with tempfile.TemporaryDirectory() as made:
        manifest = timed("read", load_manifest, write_rows(Path(made), n))
        timed("check", verify_files, manifest)
        timed("write", save_manifest, manifest.df, Path(made) / "again.csv")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    row = {"rows": n, **took, "memory_gb": round(most / 1e9, 2)}
    print(row)
    pd.DataFrame([row]).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
