"""Thousands of broken files, and what the readers make of them.

    python tools/fuzz.py [--inputs 10000] [--seed 4] [--out nbs/results/attacks/fuzz.csv] [--keep FOLDER]

Each input is a good file with one to three changes: attributes of a DICOM file set to what cannot be, fields of a
volume's header, cells of a table, or bytes anywhere. hypothesis draws the changes, so a number and a seed say which
they are. A reader takes the file in a process of its own, which may use 2 s of a processor (9 to make a cohort) and a
gigabyte of memory more than it had. What came of it:

    ok          it was read, and what was read keeps the promises of the reader (finite HU, sizes as in the header, ...)
    line        it was refused with one InputError of one line
    traceback   another exception, or a message of several lines
    silent      it was read although a number in it is impossible, or what was read breaks a promise
    died        a signal, too much memory or too much time

The files of the last three are kept in FOLDER. A spacing of 0.5 in place of 0.7, or other bytes for some pixels, make a
good file of another patient: nobody could tell, and "ok" counts them. tests/test_fuzz.py runs 500 inputs of another
seed with every `make test`.
"""

import argparse
import gzip
import io
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import formats  # noqa: E402

from liverdis.cohort.annotation.readers import list_structures, read_structures  # noqa: E402
from liverdis.cohort.annotation.structures import SliceStack  # noqa: E402
from liverdis.cohort.ct import (  # noqa: E402
    AIR,
    read_headers,
    read_hu,
    read_slice,
    sort_slices,
    volume_headers,
    write_slice,
)
from liverdis.cohort.example import write_example  # noqa: E402
from liverdis.cohort.headers import UnreadEntry, index_files  # noqa: E402
from liverdis.cohort.ingest import Ingested, ingest  # noqa: E402
from liverdis.cohort.labels import LabelRules  # noqa: E402
from liverdis.cohort.scan import scan_folder  # noqa: E402
from liverdis.core import InputError  # noqa: E402

SECONDS, MEMORY = 2, 2**30  # of a processor; bytes beyond what the process has
OUTCOMES = ("ok", "line", "traceback", "silent", "died")
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


# Good files


Y, X = np.mgrid[:48, :56]
LIVER = np.stack([np.hypot(Y - 24, X - 28) < 20] * 5)
TUMOUR = np.stack([np.hypot(Y - 22, X - 30) < 5 + k / 2 for k in range(5)])


def write_ct(folder: Path) -> list:
    """A series of five slices; their datasets."""
    folder.mkdir(parents=True)
    uids = {"SeriesInstanceUID": "1.2.1", "StudyInstanceUID": "1.2.2", "FrameOfReferenceUID": "1.2.3"}
    for k in range(5):
        hu = np.where(TUMOUR[k], 60, np.where(LIVER[k], 110, -80)) + np.random.default_rng(k).normal(0, 10, Y.shape)
        place = (-172.9, -179.3, 30 + 2 * k)
        tags = uids | {
            "SOPInstanceUID": f"1.2.4.{k}",
            "InstanceNumber": k + 1,
            "PatientID": "p^1",
            "PatientName": "p^1",
        }
        write_slice(folder / f"{k}.dcm", hu.round(), (0.743, 0.743), place, **tags)
    return [pydicom.dcmread(folder / f"{k}.dcm") for k in range(5)]


def write_compressed(folder: Path, ct: pydicom.FileDataset) -> None:
    """The first slice in JPEG 2000, JPEG-LS, run-length and deflated."""
    folder.mkdir()
    for name, syntax in (("rle", pydicom.uid.RLELossless), ("jpegls", pydicom.uid.JPEGLSLossless)):
        ds = pydicom.dcmread(ct.filename)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(folder / f"{name}.dcm")
    stream, ds = io.BytesIO(), pydicom.dcmread(ct.filename)
    Image.fromarray((ds.pixel_array + 1024).astype(np.uint16)).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    ds.PixelData, ds.PixelRepresentation, ds.RescaleIntercept = encapsulate([stream.getvalue()]), 0, -2048
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    ds.save_as(folder / "jpeg2000.dcm")
    ds = pydicom.dcmread(ct.filename)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.save_as(folder / "deflated.dcm")


def write_frames(path: Path, ct: list) -> None:
    """The series as one file of many slices."""
    ds = pydicom.dcmread(ct[0].filename)
    ds.NumberOfFrames, ds.PixelData = len(ct), b"".join(d.PixelData for d in ct)
    place = lambda d: formats.dataset(ImagePositionPatient=d.ImagePositionPatient)
    measures = formats.dataset(PixelSpacing=ds.PixelSpacing, SliceThickness=2)
    rescale = formats.dataset(RescaleSlope=1, RescaleIntercept=ds.RescaleIntercept)
    shared = dict(PixelMeasuresSequence=[measures], PixelValueTransformationSequence=[rescale])
    turn = formats.dataset(ImageOrientationPatient=ds.ImageOrientationPatient)
    ds.SharedFunctionalGroupsSequence = [formats.dataset(**shared, PlaneOrientationSequence=[turn])]
    ds.PerFrameFunctionalGroupsSequence = [formats.dataset(PlanePositionSequence=[place(d)]) for d in ct]
    for tag in ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"):
        del ds[tag]
    for tag in ("RescaleSlope", "RescaleIntercept"):
        del ds[tag]
    ds.save_as(path)


def write_seeds(folder: Path) -> None:
    """All good files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct = write_ct(folder / "ct")
        write_compressed(folder / "compressed", ct[0])
        write_frames(folder / "frames.dcm", ct)
        for kind, write in formats.ALL.items():
            (folder / kind).mkdir()
            write(folder / kind, ct, TUMOUR)
        for kind in ("FRACTIONAL",):
            (folder / kind.lower()).mkdir()
            formats.seg(folder / kind.lower(), ct, TUMOUR, kind=kind)
        values = np.stack([read_slice(d.filename).hu for d in ct]).astype(np.int16).transpose(2, 1, 0)
        (folder / "volume").mkdir()
        nib.Nifti1Image(values, np.diag([-0.743, -0.743, 2, 1])).to_filename(folder / "volume/ct.nii.gz")
        nib.Nifti1Image(values, np.diag([-0.743, -0.743, 2, 1])).to_filename(folder / "volume/ct.nii")


# Changes


DELETE = "(left out)"
NUMBERS = ("nan", "inf", "1e30", "-1", "0", "0.5", "1000", "", "abc", DELETE)
BY_VR: dict[str, tuple] = {
    "DS": NUMBERS,
    "IS": ("-1", "0", "2", "99999999", "", "abc", DELETE),
    "US": (0, 1, 2, 8, 12, 32, 47, 57, 65535, "abc", DELETE),
    "UI": ("", "1.2.3", "x" * 70, DELETE),
    "CS": ("", "RGB", "MR", "X", DELETE),
    "SQ": ([], [Dataset()], DELETE),
    "OB": (b"", b"\0\0", DELETE),
    "OW": (b"", b"\0\0", DELETE),
    "FD": (float("nan"), float("inf"), -1.0, 0.0, DELETE),
}
OF_PIXELS = frozenset(["Rows", "Columns", "BitsAllocated", "PixelData"])  # compared when the pixels are read
OF_UNITS = frozenset(["PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "Modality"])  # of CT alone
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5")
SYNTAXES += tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 90, 201)) + ("1.2.3", "")
IMPOSSIBLE = {  # attribute -> whether a value of it can never be, in a file that is otherwise good
    "Rows": lambda v: v != 48,
    "Columns": lambda v: v != 56,
    "BitsAllocated": lambda v: True,
    "PixelSpacing": lambda v: v != "0.5",
    "RescaleSlope": lambda v: v != "0.5",
    "RescaleIntercept": lambda v: v in ("nan", "inf", "1e30", "abc", "", DELETE),
    "ImagePositionPatient": lambda v: v in ("nan", "inf", "1e30", "abc"),
    "ImageOrientationPatient": lambda v: v not in ("", "-1", DELETE),  # -1 mirrors the slice
    "SliceThickness": lambda v: v in ("nan", "inf", "1e30", "-1", "abc"),
    "NumberOfFrames": lambda v: v not in ("", DELETE),
    "Modality": lambda v: True,
    "PixelData": lambda v: True,
    "SegmentationType": lambda v: True,
    "MaximumFractionalValue": lambda v: v in (0, "abc", DELETE),
    "ContourData": lambda v: v in ("nan", "inf", "1e30", "abc"),
}


@dataclass
class Change:
    """One change of a file."""

    what: str  # for the report
    apply: Callable[[Any], Any]
    impossible: bool = False


def elements(ds: Dataset, path: tuple = ()) -> list[tuple]:
    """Paths of all elements of a dataset, of sequences the first two items."""
    found = []
    for element in ds:
        found.append((*path, element.tag))
        if element.VR == "SQ":
            for i, item in enumerate(element.value[:2]):
                found += elements(item, (*path, element.tag, i))
    return found


def set_element(ds: Dataset, path: tuple, value: Any) -> None:
    """Set one element of a dataset, however wrong; what is left of a path that is gone is ignored."""
    for step in path[:-1]:
        ds = ds[step].value if not isinstance(step, int) or isinstance(step, pydicom.tag.BaseTag) else ds[step]
    tag = path[-1]
    if value is DELETE:
        del ds[tag]
        return
    old = ds[tag]
    if old.VR in ("DS", "IS", "FD") and old.VM > 1 and not isinstance(value, list) and value != "":
        value = [value, *list(old.value)[1:]]
    try:
        ds[tag] = DataElement(tag, old.VR, value)
    except (TypeError, ValueError, OverflowError):
        ds[tag] = DataElement(tag, "LO", str(value))


def with_syntax(data: bytes, uid: str) -> bytes:
    """A DICOM file that says another transfer syntax than it has."""
    at = data.find(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    said = uid.encode() + b"\0" * (len(uid) % 2)
    return data[: at + 6] + len(said).to_bytes(2, "little") + said + data[at + 8 + length :]


def dicom_change(draw: Any, data: bytes) -> Change:
    """An attribute of a DICOM file set to something."""
    ds = pydicom.dcmread(io.BytesIO(data))
    if draw(st.integers(0, 19)) == 0:
        uid = draw(st.sampled_from(SYNTAXES))
        return Change(f"syntax {uid}", lambda data: with_syntax(data, uid))
    known = [p for p in elements(ds) if pydicom.datadict.keyword_for_tag(p[-1]) in IMPOSSIBLE]
    path = draw(st.sampled_from(known) | st.sampled_from(elements(ds)))
    owner: Any = ds
    for step in path[:-1]:
        owner = owner[step] if not isinstance(owner, Dataset) else owner[step].value
    value = draw(st.sampled_from(BY_VR.get(owner[path[-1]].VR, ("", "x" * 200, DELETE))))
    name = pydicom.datadict.keyword_for_tag(path[-1])

    def apply(data: bytes) -> bytes:
        edited, out = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
        set_element(edited, path, value)
        edited.save_as(out, enforce_file_format=False)
        return out.getvalue()

    same = owner[path[-1]].value == value
    impossible = name in IMPOSSIBLE and not same and bool(IMPOSSIBLE[name](value))
    return Change(f"{name} {value if not isinstance(value, (bytes, list)) else '...'}", apply, impossible)


def header_change(draw: Any, data: bytes) -> Change:
    """A field of a NIfTI header, a line of a text header, or a cell of a table set to something."""
    packed = data[:2] == b"\x1f\x8b"
    plain = gzip.decompress(data) if packed else data
    if plain[344:347] in (b"n+1", b"ni1"):
        fields = nib.Nifti1Header.template_dtype.fields
        name = draw(st.sampled_from(sorted(fields)))
        dtype, offset = fields[name][:2]
        size = dtype.itemsize
        filled = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80\x7f", b"\xc0\x7f", b"\x01\0"]))
        piece = (filled * size)[:size]
        change = lambda d: d[:offset] + piece + d[offset + size :]
    else:
        value = draw(st.sampled_from([*NUMBERS[:-1], "1e9 1e9 1e9", "../../x", "/dev/zero", "LIST", "4096 4096 4096"]))
        lines = plain.split(b"\n\n")[0].count(b"\n") or 1
        number = draw(st.integers(0, min(lines, 30)))
        name = f"line {number} {value}"

        def change(d: bytes) -> bytes:
            parts = d.split(b"\n", number + 1)
            line = parts[number] if number < len(parts) else b""
            cells = line.replace(b"=", b":").split(b":") if b"," not in line else line.split(b",")
            new = line[: len(line) - len(cells[-1])] + b" " + value.encode()
            return b"\n".join([*parts[:number], new, *parts[number + 1 :]])

    return Change(name, (lambda d: gzip.compress(change(gzip.decompress(d)))) if packed else change)


def byte_change(draw: Any, data: bytes) -> Change:
    """Bytes changed, cut out, repeated or cut off, mostly where the headers are."""
    at = draw(st.integers(0, min(len(data), 2000) - 1) | st.integers(0, len(data) - 1))
    what = draw(st.sampled_from(["set", "cut", "repeat", "end"]))
    n, new = draw(st.integers(1, 16)), draw(st.binary(min_size=1, max_size=8))

    def apply(data: bytes) -> bytes:
        if what == "set":
            return data[:at] + new + data[at + len(new) :]
        if what == "cut":
            return data[:at] + data[at + n :]
        return data[:at] if what == "end" else data[: at + n] + data[at:]

    return Change(f"{what} at {at}", apply)


@st.composite
def changed(draw: Any, seeds: list[Path], change: Callable, unused: frozenset[str]) -> tuple[Path, bytes, str, bool]:
    """A good file, its changed bytes, what was changed, and whether that cannot be."""
    path = draw(st.sampled_from(seeds))
    data, said, impossible = path.read_bytes(), [], []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        try:
            one = change(draw, data)
            data = one.apply(data)
        except Exception:  # a change that undoes what another needs
            continue
        said.append(one.what)
        impossible.append(one.impossible and not {one.what, one.what.split()[0]} & unused)
    return path, data, "; ".join(said), len(said) == 1 and impossible[0]


# Reading


def broken_promise(ct: Any) -> str:
    """What is wrong with a slice that was read; '' if nothing is."""
    places = [*(ct.position_mm or ()), *(ct.orientation or ()), *ct.spacing_mm, ct.thickness_mm or 0]
    if not np.isfinite(places).all() or not all(0.01 < s <= 10 for s in ct.spacing_mm):
        return "a place or spacing that cannot be"
    if ct.hu.shape != ct.shape or not np.isfinite(ct.hu).all() or ct.hu.min() < AIR:
        return "HU that cannot be"
    return "" if np.median(ct.hu) < 4000 else "HU that no body has"


def read_a_slice(path: Path) -> str:
    """Read one CT file, and every slice in it."""
    for header in volume_headers(path) if ".nii" in path.name else read_headers(path):
        if said := broken_promise(read_hu(header)):
            return said
    return ""


def read_outlines(kind: str, stack: SliceStack, paths: list[Path]) -> str:
    """Read the structures of an annotation."""
    listed = list_structures(paths, kind)
    structures = read_structures(paths, kind, stack.slices)
    for s in structures:
        for rank, mask in s.masks.items():
            if mask.shape != stack.slices[rank].shape or mask.dtype != bool or not mask.any():
                return "a mask of another kind than promised"
    return "" if len(structures) == len(listed) or kind == "dicom-mask" else "other structures than listed"


def search(path: Path) -> str:
    """Search a folder in which one file is broken: a refusal of that file is one line among the problems."""
    patients, problems = scan_folder(path)
    for p in problems:
        if len(p.reason.splitlines()) != 1:
            return f"several lines: {p.reason}"
    if not patients and not problems:
        return "a file is gone without a word"
    if problems:
        raise InputError(problems[0].reason)
    return ""


def index(path: Path) -> str:
    """Read the header of one file as a search does."""
    entries, problems = index_files([path], path.parent)
    if problems:
        raise InputError(problems[0].reason)
    if entries and isinstance(entries[0], UnreadEntry):
        raise InputError(entries[0].kind.what)
    return "" if entries or path.suffix == ".raw" else "a file is gone without a word"


def cases(done: Ingested) -> Counter:
    """The cases of a cohort, by the first letters of the patient's id."""
    return Counter(done.manifest.df.patient_id) if done.manifest else Counter()


def make_cohort(patients: Path, broken: Path | None = None) -> Ingested:
    """Ingest two made-up patients, in a file of whom is what `broken` holds."""
    with tempfile.TemporaryDirectory() as made:
        tree = Path(made) / "in"
        shutil.copytree(patients, tree, symlinks=True)
        if broken:
            shutil.copy(broken, next(tree.rglob(broken.name)))
        (Path(made) / "out.key").write_text("0123456789abcdef" * 4)
        os.chmod(Path(made) / "out.key", 0o600)
        return ingest(tree, Path(made) / "out", LabelRules((("*tumo*", "metastasis", "*"),)))


def cohort_reader(patients: Path) -> Callable[[Path], str]:
    """How to make a cohort of two patients, in one of whom a file is broken."""
    whole = cases(make_cohort(patients))

    def read(path: Path) -> str:
        done = make_cohort(patients, path)
        found = cases(done)
        told = done.problems or len(done.skipped)
        if sum(found[p] < n for p, n in whole.items()) > 1:
            return "a broken file of one patient cost the other a case"
        return "" if found == whole or told else "a case is gone without a word"

    return read


def limited(read: Callable[[Path], str], path: Path, seconds: int) -> tuple[str, str]:
    """The outcome of reading a file in this process, within limits unless they are 0."""
    if seconds:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        said = read(path)
        return ("silent", said) if said else ("ok", "")
    except InputError as e:
        return ("line", str(e)) if len(str(e).splitlines()) == 1 else ("traceback", str(e))
    except BaseException as e:
        return "traceback", f"{type(e).__name__}: {e}"


def apart(read: Callable[[Path], str], path: Path, seconds: int = SECONDS) -> tuple[str, str]:
    """The outcome of reading a file in a process of its own."""
    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        warnings.simplefilter("ignore")
        os.write(theirs, pickle.dumps([s[:2000] for s in limited(read, path, seconds)]))
        os._exit(0)
    os.close(theirs)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(30)  # for a reader that waits and uses no processor
    with os.fdopen(ours, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    if status or not said:
        return "died", f"signal {os.waitstatus_to_exitcode(status)}"
    outcome, text = pickle.loads(said)
    return outcome, text


def timed(read: Callable[[Path], str], path: Path, seconds: int = SECONDS) -> tuple[str, str]:
    """The outcome where the decoder has a process of its own, which goes on to the next file."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = limited(read, path, 0)
    return found if time.process_time() - began < seconds else ("died", "too slow")


# Attacks


@dataclass
class Attack:
    """Changes of one kind to some good files, and how they are read."""

    name: str
    seeds: list[Path]
    change: Callable
    read: Callable[[Path], str]
    run: Callable = apart
    share: float = 1  # of the inputs, against the others
    unused: frozenset[str] = frozenset()  # attributes that this reader does not look at; others do
    seconds: int = SECONDS  # of a processor


def attacks(folder: Path) -> list[Attack]:
    """All attacks on the good files in a folder."""
    stack = SliceStack(sort_slices(h for f in sorted((folder / "ct").iterdir()) for h in read_headers(f)))
    plain = [folder / "ct/0.dcm", folder / "frames.dcm"]
    compressed, volumes = sorted((folder / "compressed").iterdir()), sorted((folder / "volume").iterdir())
    found = [
        Attack("CT slice, tags", plain, dicom_change, read_a_slice, share=4),
        Attack("CT slice, bytes", plain, byte_change, read_a_slice, share=2),
        Attack("compressed CT, tags", compressed, dicom_change, read_a_slice, timed, share=1.5),
        Attack("compressed CT, bytes", compressed, byte_change, read_a_slice, timed, share=1.5),
        Attack("header, tags", plain, dicom_change, index, share=2, unused=OF_PIXELS),
        Attack("header, bytes", plain, byte_change, index),
        Attack("CT volume, header", volumes, header_change, read_a_slice),
        Attack("CT volume, bytes", volumes, byte_change, read_a_slice),
    ]
    for name in ("seg", "fractional", "rtstruct"):
        seeds = [f for f in (folder / name).iterdir()]
        read = outlines_reader("rtstruct" if name == "rtstruct" else "seg", stack)
        optional = frozenset(["PixelSpacing ", "PixelSpacing (left out)"])
        found.append(Attack(f"{name}, tags", seeds, dicom_change, read, share=1.5, unused=optional))
        found.append(Attack(f"{name}, bytes", seeds, byte_change, read))
    for kind in formats.ALL.keys() - {"seg", "rtstruct", "dicom-mask"}:
        seeds = sorted(f for f in (folder / kind).rglob("*") if f.is_file())
        if kind in ("nifti", "nrrd", "metaimage", "boxes", "polygons"):
            found.append(Attack(f"{kind}, header", seeds, header_change, outlines_reader(kind, stack)))
        of_one = SliceStack(stack.slices[:1]) if kind.endswith("-mask") else stack  # one picture, one slice
        found.append(Attack(f"{kind}, bytes", seeds[:1], byte_change, outlines_reader(kind, of_one)))
    masks = sorted(f for f in (folder / "dicom-mask").rglob("*") if f.is_file())
    read = outlines_reader("dicom-mask", stack)
    found.append(Attack("DICOM mask, tags", masks[:1], dicom_change, read, unused=OF_UNITS))
    found.append(Attack("DICOM mask, bytes", masks[:1], byte_change, outlines_reader("dicom-mask", stack)))
    everything = [f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".dcm", "")]
    found.append(
        Attack("folder, tags", plain[:1] + masks[:1], dicom_change, among(folder), share=0.5, unused=OF_PIXELS)
    )
    found.append(Attack("folder, bytes", plain[:1] + everything, byte_change, among(folder), share=0.5))
    if (patients := folder / "patients").exists():
        of_one = [f for f in (patients / "a").rglob("*") if f.is_file()]
        seeds, read = [of_one[0], *(f for f in of_one if "MASKS" in str(f))], cohort_reader(patients)
        found.append(
            Attack("ingest, tags", seeds, dicom_change, read, share=0.3, unused=frozenset(IMPOSSIBLE), seconds=9)
        )
        found.append(Attack("ingest, bytes", seeds, byte_change, read, share=0.3, seconds=9))
    return sorted(found + real_attacks(), key=lambda a: a.name)


def real_attacks() -> list[Attack]:
    """Attacks on files of real scanners, where they are at hand; see CONTRIBUTING."""
    real = Path(os.environ.get("LIVERDIS_REALDATA", ROOT / "../shared/realdata"))
    if not real.is_dir():
        return []
    plain = sorted((real / "transfer_syntaxes").glob("*LittleEndian*.dcm"))
    compressed = sorted((real / "transfer_syntaxes").glob("*Lossless*.dcm"))
    return [
        Attack("real CT, tags", plain, dicom_change, read_a_slice),
        Attack("real CT, bytes", plain, byte_change, read_a_slice),
        Attack("real compressed CT, tags", compressed, dicom_change, read_a_slice, timed),
        Attack("real compressed CT, bytes", compressed, byte_change, read_a_slice, timed),
    ]


def outlines_reader(kind: str, stack: SliceStack) -> Callable[[Path], str]:
    """How to read outlines of a kind from one file."""
    return lambda path: read_outlines(kind, stack, [path])


def among(folder: Path) -> Callable[[Path], str]:
    """How to search a folder of one series and its outlines, with a broken file in it."""

    def read(path: Path) -> str:
        tree = Path(tempfile.mkdtemp())
        shutil.copytree(folder / "ct", tree / "ct")
        shutil.copytree(folder / "seg", tree / "seg")
        shutil.copy(path, tree / "ct" / path.name)
        try:
            return search(tree)
        finally:
            shutil.rmtree(tree)

    return read


def run_attack(attack: Attack, n: int, seed: int, scratch: Path, keep: Path | None = None) -> tuple[Counter, list[str]]:
    """Outcomes of some inputs of an attack, and what failed."""
    outcomes: Counter[str] = Counter()
    failed: list[str] = []

    @hypothesis_seed(seed)
    @settings(
        max_examples=n, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(changed(attack.seeds, attack.change, attack.unused))
    def one(case: tuple) -> None:
        path, data, what, impossible = case
        broken = scratch / path.name
        broken.write_bytes(data)
        outcome, said = attack.run(attack.read, broken, attack.seconds)
        if outcome == "ok" and impossible:
            outcome, said = "silent", "an impossible value was accepted"
        outcomes[outcome] += 1
        if outcome not in ("ok", "line"):
            failed.append(f"{attack.name}: {path.name}: {what}: {outcome}: {said}")
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                name = f"{attack.name.replace(' ', '_').replace(',', '')}-{len(failed)}-{path.name}"
                (keep / name).write_bytes(data)

    one()
    return outcomes, failed


def run(
    n: int, seed: int, keep: Path | None = None, only: str = "", cohorts: bool = False, report: Callable | None = None
) -> tuple[list[dict], list[str]]:
    """One row an attack, and what failed."""
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as made:
        folder, scratch = Path(made) / "good", Path(made) / "broken"
        scratch.mkdir()
        write_seeds(folder)
        if cohorts:  # ten times slower than the rest
            write_example(folder / "patients/a", "Doe^Jane", "4711", 1, [(6, 62, 46, 9)])
            write_example(folder / "patients/b", "Roe^John", "0815", 2, [(8, 70, 50, 7)])
        all_attacks = attacks(folder)
        total = sum(a.share for a in all_attacks)
        for attack in all_attacks:
            if only in attack.name:
                inputs = max(1, round(n * attack.share / total))
                outcomes, said = run_attack(attack, inputs, seed, scratch, keep)
                counts = {o: outcomes[o] for o in OUTCOMES}
                rows.append({"attack": attack.name, "seed": seed, "inputs": sum(counts.values()), **counts})
                failed += said
                if report:
                    report(rows[-1])
    return rows, failed


def record(rows: list[dict], path: Path) -> None:
    """Add the rows to a table, in place of those of the same attacks and seed."""
    table = pd.concat([*([pd.read_csv(path)] if path.exists() else []), pd.DataFrame(rows)])
    table = table.drop_duplicates(["attack", "seed"], keep="last").sort_values(["seed", "attack"])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def main() -> int:
    """Run, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--only", default="", help="attacks whose name holds this")
    parser.add_argument("--out", type=Path, help="table; rows of other seeds stay")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    args = parser.parse_args()
    show = lambda row: print(f"{row['attack']:26}", *(f"{k} {v}" for k, v in row.items() if k != "attack"), flush=True)
    rows, failed = run(args.inputs, args.seed, args.keep, args.only, cohorts=True, report=show)
    print(*failed, sep="\n")
    if args.out:
        record(rows, args.out)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
