"""`ingest` against pydicom alone, which only opens the same files and decodes their pixels."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
from joblib import Parallel, delayed
from pydicom.errors import InvalidDicomError

from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.example import write_example
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules

from .timing import in_fresh_process

UIDS = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"
LESIONS = [(14, 210, 150, 30), (26, 300, 240, 24)]  # of the patient that is made up

# -- a hospital --------------------------------------------------------------------------------------------------------


def copy_patients(
    source: Path,  # folder of one patient
    folder: Path,  # to write to
    n: int,  # patients
) -> None:
    """Copies of a patient that differ in their identifiers."""
    files = [f for f in sorted(source.rglob("*")) if f.is_file()]
    for k in range(n):
        for f in files:
            to = folder / f"patient{k:04}" / f.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            _copy(f, to, k)


def _copy(path, to, k):
    try:
        ds = pydicom.dcmread(path)
    except InvalidDicomError:
        shutil.copy(path, to)
        return
    ds.PatientID = f"{ds.get('PatientID', '')}{k:04}"
    for tag in UIDS:
        if ds.get(tag):
            setattr(ds, tag, f"{ds[tag].value[:58]}.{k + 1}")
    ds.save_as(to)


# -- what is compared --------------------------------------------------------------------------------------------------


def read_with_pydicom(src: Path, jobs: int) -> None:
    """Open every file and decode its pixels."""
    files = sorted(f for f in src.rglob("*") if f.is_file())
    Parallel(jobs, batch_size=100)(delayed(_read_one)(f) for f in files)


def _read_one(path):
    try:
        _ = pydicom.dcmread(path).pixel_array
    except InvalidDicomError:
        path.read_bytes()


def ingest_all(src: Path, jobs: int, healthy: int) -> None:
    """Make a cohort of it."""
    labels = LabelRules((("*tumo*", "metastasis", "*"),))
    with tempfile.TemporaryDirectory() as out:
        ingest(src, Path(out) / "cohort", labels, options=IngestOptions(healthy=healthy), jobs=jobs)


def ways(src: Path, healthy: int) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """Both, in one process and in two."""
    return {
        "pydicom": (read_with_pydicom, (src, 1)),
        "ingest": (ingest_all, (src, 1, healthy)),
        "pydicom, two processes": (read_with_pydicom, (src, 2)),
        "ingest, two processes": (ingest_all, (src, 2, healthy)),
    }


# -- the benchmark -----------------------------------------------------------------------------------------------------


def bench_ingest(
    source: str | Path | None = None,  # folder of one patient; None makes one up
    patients: Sequence[int] = (4, 16, 64),  # sizes of the hospital
    rounds: int = 3,
    healthy: int = 0,  # squares of healthy parenchyma per patient
) -> pd.DataFrame:  # patients, files, mb, round, what, seconds, peak_mb
    """`ingest` and pydicom alone on the same files, in turn, each in a fresh process."""
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as tmp:
        one = Path(source) if source else _example(Path(tmp) / "one")
        for n in patients:
            src = Path(tmp) / f"{n}"
            copy_patients(one, src, n)
            rows += _bench_hospital(src, n, rounds, healthy)
            shutil.rmtree(src)
    return pd.DataFrame(rows)


def _example(folder):
    write_example(folder, "Doe^Jane", "", 7, LESIONS, n=40, size=512)
    return folder


def _bench_hospital(src, n, rounds, healthy):
    files = [f for f in src.rglob("*") if f.is_file()]
    about = {"patients": n, "files": len(files), "mb": sum(f.stat().st_size for f in files) / 2**20}
    rows = []
    for k in range(rounds):
        for what, (f, args) in ways(src, healthy).items():
            measured = in_fresh_process(f, *args)
            rows.append(about | {"round": k, "what": what} | measured._asdict())
    return rows


def ingest_ratios(
    table: pd.DataFrame,  # of `bench_ingest`
) -> pd.DataFrame:  # median, min and max over rounds
    """Times as ratios to pydicom's of the same round."""
    wide = table.pivot_table(index=["patients", "round"], columns="what", values="seconds")
    ingest_2, pydicom_2 = wide["ingest, two processes"], wide["pydicom, two processes"]
    rows = pd.DataFrame(
        {
            "ingest / pydicom": wide["ingest"] / wide["pydicom"],
            "ingest / pydicom, two processes each": ingest_2 / pydicom_2,
            "speed-up of ingest by a second process": wide["ingest"] / ingest_2,
            "speed-up of pydicom": wide["pydicom"] / pydicom_2,
        }
    )
    return rows.groupby("patients").agg(["median", "min", "max"]).round(2)
