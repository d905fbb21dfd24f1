"""Broken and hostile files: 500 drawn by tools/fuzz.py, and one test for each thing that once went wrong.

Before, each of the files below ended in a traceback, an abort, minutes of waiting, gigabytes of memory, or silence.
"""

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import fuzz
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from liverdis.cohort import decoding, door
from liverdis.cohort.annotation import contours
from liverdis.cohort.annotation.contours import fill_polygons
from liverdis.cohort.annotation.readers import read_structures
from liverdis.cohort.annotation.structures import SliceStack
from liverdis.cohort.archives import source_folder
from liverdis.cohort.ct import read_headers, read_hu, read_series, read_slice, read_volume, sort_slices
from liverdis.cohort.scan import scan_folder
from liverdis.cohort.volumes import open_volume
from liverdis.core import InputError

FAILURES = ("traceback", "silent", "died")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "files"
    fuzz.write_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def stack(good):
    return SliceStack(sort_slices(h for f in sorted((good / "ct").iterdir()) for h in read_headers(f)))


def refused(read, path):
    "The one line that a reader gives within 2 s and 1 GiB"
    outcome, said = fuzz.apart(read, path)
    assert outcome == "line", (outcome, said)
    return said


def edited(good, tmp_path, name="ct/0.dcm", **values):
    "A good file with some attributes changed"
    ds = pydicom.dcmread(good / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        ds.save_as(tmp_path / "edited.dcm")
    return tmp_path / "edited.dcm"


def outlined(kind, stack):
    return lambda path: read_structures([path], kind, stack.slices) and ""


def test_500_broken_files():
    rows, failed = fuzz.run(500, seed=2)
    assert not failed, "\n".join(failed)
    assert sum(row["inputs"] for row in rows) > 400
    assert sum(row["ok"] for row in rows) > 50 and sum(row["line"] for row in rows) > 150


def test_the_good_files_are_read(good):
    for attack in (a for a in fuzz.attacks(good) if not a.name.startswith("folder")):
        for seed in attack.seeds:
            assert attack.run(attack.read, seed) == ("ok", ""), (attack.name, seed.name)


@pytest.mark.parametrize("n", [0, -1, 2, 10**8])
def test_number_of_frames(good, tmp_path, n):
    "0 made a patient vanish, 1e8 took 4 GB"
    assert "frame" in refused(fuzz.read_a_slice, edited(good, tmp_path, "frames.dcm", NumberOfFrames=n))
    assert "frame" in refused(fuzz.index, edited(good, tmp_path, "frames.dcm", NumberOfFrames=n))


def test_a_header_of_65535_x_65535(good, tmp_path):
    assert "65535 x 65535" in refused(fuzz.read_a_slice, edited(good, tmp_path, Rows=65535, Columns=65535))


@pytest.mark.parametrize("tag, value", [("RescaleSlope", "nan"), ("RescaleSlope", 0), ("RescaleSlope", 1000)])
def test_slopes_that_were_silent(good, tmp_path, tag, value):
    assert tag in refused(fuzz.read_a_slice, edited(good, tmp_path, **{tag: value}))


def test_a_slope_of_40_gives_no_hounsfield_units(good, tmp_path):
    assert "too many values" in refused(fuzz.read_a_slice, edited(good, tmp_path, RescaleSlope=40))


def test_signed_values_taken_for_unsigned(good, tmp_path):
    "A third of the slice, the air around the body, became 64,000 HU"
    ds = pydicom.dcmread(good / "ct/0.dcm")
    hu = np.where(fuzz.LIVER[0], 60, -1000).astype(np.int16)
    ds.PixelData, ds.RescaleIntercept = hu.tobytes(), 0
    ds.save_as(tmp_path / "signed.dcm")
    assert read_slice(tmp_path / "signed.dcm").hu.min() == -1000
    ds.PixelRepresentation = 0
    ds.save_as(tmp_path / "unsigned.dcm")
    assert "no Hounsfield units" in refused(fuzz.read_a_slice, tmp_path / "unsigned.dcm")


def test_values_that_need_more_bits_than_stored(good, tmp_path):
    path = edited(good, tmp_path, BitsStored=8, HighBit=7)
    assert "BitsStored 8" in refused(fuzz.read_a_slice, path)
    assert (read_slice(edited(good, tmp_path, BitsStored=12, HighBit=11)).hu == read_slice(good / "ct/0.dcm").hu).all()


def test_a_slice_of_another_grid_in_a_series(good, tmp_path):
    shutil.copytree(good / "ct", tmp_path / "ct")
    edited(good, tmp_path, "ct/3.dcm", PixelSpacing=[0.9, 0.743]).rename(tmp_path / "ct/3.dcm")
    with pytest.raises(InputError, match="another number or size"):
        read_series(tmp_path / "ct")


def test_20_000_boxes(stack, tmp_path):
    rows = "".join(f"1,{k % 5}.dcm,{k % 40},{k % 40 + 3},5,9\n" for k in range(20_000))
    (tmp_path / "boxes.csv").write_text("lesion,image,row_min,row_max,col_min,col_max\n" + rows)
    (lesion,) = read_structures([tmp_path / "boxes.csv"], "boxes", stack.slices)
    assert len(lesion.masks) == 5
    rows = "".join(f"{k},{k % 5}.dcm,1,4,5,9\n" for k in range(2000))
    (tmp_path / "boxes.csv").write_text("lesion,image,row_min,row_max,col_min,col_max\n" + rows)
    assert "2000 lesions on one series" in refused(outlined("boxes", stack), tmp_path / "boxes.csv")


@pytest.mark.parametrize("rows, columns", [(47, 56), (48, 55), (24, 112), (48, 2)])
def test_pixels_of_another_shape(good, tmp_path, rows, columns):
    "Fewer columns gave a scrambled slice; as many pixels in other columns cannot be told"
    path = edited(good, tmp_path, Rows=rows, Columns=columns)
    if rows * columns == 48 * 56:
        assert read_slice(path).shape == (rows, columns)
    else:
        assert "bytes for" in refused(fuzz.read_a_slice, path)


@pytest.mark.parametrize("name", ["rle", "jpegls", "jpeg2000"])
def test_compressed_pixels_of_another_shape(good, tmp_path, name):
    path = edited(good, tmp_path, f"compressed/{name}.dcm", Columns=8)
    with pytest.raises(InputError, match="cannot be decoded"):
        read_slice(path)


@pytest.mark.parametrize("rows", [1, 40, 47, 49])
def test_a_segmentation_of_another_shape(good, stack, tmp_path, rows):
    assert "bytes for" in refused(outlined("seg", stack), edited(good, tmp_path, "seg/seg.dcm", Rows=rows))


def deflated(path, good, n):
    "A deflated slice with `n` zeros after it"
    ds = pydicom.dcmread(good / "compressed/deflated.dcm")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    plain = io.BytesIO()
    ds.save_as(plain)
    start = (good / "compressed/deflated.dcm").read_bytes()
    begin = (
        144 + pydicom.filereader.read_file_meta_info(good / "compressed/deflated.dcm").FileMetaInformationGroupLength
    )
    packer = zlib.compressobj(wbits=-15)
    with open(path, "wb") as file:
        file.write(
            start[:begin] + packer.compress(plain.getvalue()[144 + ds.file_meta.FileMetaInformationGroupLength :])
        )
        file.write(packer.compress(bytes(n)) + packer.flush())


def test_a_deflated_file_that_unpacks_to_more_than_the_limit(good, tmp_path, monkeypatch):
    "3.3 MB gave 3 GB; here the limit is 1 MB"
    deflated(tmp_path / "bomb.dcm", good, 2**21)
    monkeypatch.setattr(door, "MOST_BYTES", 2**20)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2e4
    for read in (fuzz.read_a_slice, fuzz.index):
        assert "unpack to more than" in refused(read, tmp_path / "bomb.dcm")
    assert read_slice(good / "compressed/deflated.dcm").shape == (48, 56)


def test_volumes_that_are_larger_than_the_limits(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2000, 2000, 400))
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    assert "its values take 3.2 GB" in refused(lambda p: open_volume(p) and "", tmp_path / "huge.nii.gz")
    (tmp_path / "zero.nhdr").write_text(
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 9 9\nencoding: raw\ndata file: /dev/zero\n"
    )
    assert "cannot be read" in refused(lambda p: open_volume(p) and "", tmp_path / "zero.nhdr")
    bomb = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 9 9\nencoding: gzip\n\n"
    (tmp_path / "bomb.nrrd").write_bytes(bomb + gzip.compress(bytes(50 * 2**20)))
    assert "bytes more than" in refused(lambda p: open_volume(p) and "", tmp_path / "bomb.nrrd")


def test_a_ct_as_nifti_is_kept_as_it_is_stored(tmp_path):
    "Scaled values were read as float64, eight bytes for two"
    image = nib.Nifti1Image(np.zeros((64, 64, 8), np.int16), np.diag([0.7, 0.7, 2, 1]))
    image.header.set_slope_inter(1, -1024)
    image.to_filename(tmp_path / "scaled.nii")
    nib.Nifti1Image(np.zeros((64, 64, 8), np.int16), np.diag([0.7, 0.7, 2, 1])).to_filename(tmp_path / "plain.nii")
    dtypes = [read_volume(tmp_path / name).dtype for name in ("scaled.nii", "plain.nii")]
    assert dtypes == [np.float32, np.int16]


def test_60_000_labels(stack, tmp_path):
    "Over 60 s and 3.1 GB"
    values = np.broadcast_to(np.arange(60_000, dtype=np.uint16).reshape(60, 1000), (64, 60, 1000))
    nib.Nifti1Image(values, np.diag([-0.743, -0.743, 2, 1])).to_filename(tmp_path / "many.nii.gz")
    assert "different labels" in refused(outlined("nifti", stack), tmp_path / "many.nii.gz")


def rtstruct(good, tmp_path, data):
    ds = pydicom.dcmread(good / "rtstruct/rtstruct.dcm")
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contour.ContourData = data(contour.ContourData)
        contour.NumberOfContourPoints = len(contour.ContourData) // 3
        ds.save_as(tmp_path / "rt.dcm")
    return tmp_path / "rt.dcm"


@pytest.mark.parametrize("value", ["nan", "inf", "1e30"])
def test_a_point_that_is_no_place(good, stack, tmp_path, value):
    "The slice was left out without a word"
    path = rtstruct(good, tmp_path, lambda data: [*data[:3], value, *data[4:]])
    assert "no place" in refused(outlined("rtstruct", stack), path)


def test_a_contour_of_too_many_points(good, stack, tmp_path, monkeypatch):
    "A million took 48 s; here the limit is 500"
    path = rtstruct(good, tmp_path, lambda data: ["1"] * 3 * 600)
    monkeypatch.setattr(contours, "MOST_POINTS", 500)
    assert "600 points" in refused(outlined("rtstruct", stack), path)


def test_a_contour_of_200_000_points_is_filled():
    angle = np.linspace(0, 2 * np.pi, 199_999)
    began = time.process_time()
    filled = fill_polygons([256 + 200 * np.stack([np.sin(angle), np.cos(angle)], 1)], (512, 512))
    assert time.process_time() - began < 2
    y, x = np.mgrid[:512, :512]
    assert (filled == (np.hypot(y - 256, x - 256) < 200)).mean() > 0.9999  # but for centres on the line


@pytest.mark.parametrize("value", [0, 300])
def test_a_fraction_of_nothing(good, stack, tmp_path, value):
    "With 0 every pixel belonged to the lesion"
    path = edited(good, tmp_path, "fractional/seg.dcm", MaximumFractionalValue=value)
    assert "MaximumFractionalValue" in refused(outlined("seg", stack), path)


def test_a_picture_that_is_too_large(stack, tmp_path):
    Image.fromarray(np.zeros((5000, 5000), np.uint8)).save(tmp_path / "1.png")
    assert "5000 x 5000" in refused(outlined("png-mask", stack), tmp_path / "1.png")


def test_jpeg_2000_in_rgb_does_not_abort(good, tmp_path):
    ds = pydicom.dcmread(good / "compressed/jpeg2000.dcm")
    ds.PhotometricInterpretation = "RGB"
    ds.save_as(tmp_path / "rgb.dcm")
    for read in (read_slice, decoding.decode_apart):
        with pytest.raises((InputError, EOFError)):
            read(tmp_path / "rgb.dcm")
    assert (read_slice(good / "compressed/jpeg2000.dcm").hu == read_slice(good / "ct/0.dcm").hu).all()


def test_an_answer_that_nobody_fetched_is_not_given_to_the_next(good, monkeypatch):
    "After Ctrl-C the decoder would answer with the slice before"
    fetch = decoding._exchange

    def interrupted(process, request):
        process.stdin.write(b'{"path": "other.dcm", "frame": null}\n')
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_slice(good / "compressed/jpeg2000.dcm")
    monkeypatch.setattr(decoding, "_exchange", fetch)
    assert (read_slice(good / "compressed/jpeg2000.dcm").hu == read_slice(good / "ct/0.dcm").hu).all()


def test_a_decoder_that_hangs_is_ended(good, monkeypatch):
    monkeypatch.setattr(decoding, "_SECONDS", 0)
    decoding._decoder.process and decoding._decoder.stop()
    with pytest.raises(InputError, match="cannot be decoded"):
        read_slice(good / "compressed/jpeg2000.dcm")


def test_the_decoder_ends_with_its_owner(good):
    program = (
        "import sys, time; from liverdis.cohort import decoding; decoding.decode_apart(sys.argv[1]);"
        "print(decoding._decoder.process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(good / "compressed/jpeg2000.dcm")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    decoder = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    for _ in range(100):
        state = Path(f"/proc/{decoder}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the decoder is still there")


def test_pipes_and_links_in_a_folder(good, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("ct", "seg"):
        (tmp_path / "in" / name).symlink_to(good / name)
    os.mkfifo(tmp_path / "in/pipe.dcm")
    os.mkfifo(tmp_path / "in/pipe.zip")
    (tmp_path / "in/root").symlink_to("/")
    (tmp_path / "in/devices").symlink_to("/dev")
    with source_folder(tmp_path / "in") as source:
        (patient,), problems = scan_folder(source.folder)
    assert len(patient.annotations) == 1
    said = {p.path.name: p.reason.split(":")[0] for p in problems}
    pipe, link = "a pipe, a socket or a device", "a link out of the folder, to one above it"
    assert said == {"pipe.dcm": pipe, "pipe.zip": pipe, "root": link, "devices": link}
    assert "a pipe" in refused(fuzz.read_a_slice, tmp_path / "in/pipe.dcm")


def test_zip_files_with_odd_names_and_bombs(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as made:
        made.writestr(zipfile.ZipInfo("."), "x")
    with pytest.raises(InputError, match="leads out"), source_folder(tmp_path / "odd.zip"):
        pass
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.dcm", bytes(10**6))
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # what it says that it unpacks to
    (tmp_path / "bomb.zip").write_bytes(data)
    with pytest.raises(InputError, match="unpack to 4.3 GB"), source_folder(tmp_path / "bomb.zip"):
        pass


def test_one_bad_file_costs_only_itself(good, tmp_path):
    "A slice, a table and a mask that are broken in ways that parsers do not expect"
    (tmp_path / "in").mkdir()
    for name in ("ct", "seg"):
        (tmp_path / "in" / name).symlink_to(good / name)
    edited(good, tmp_path, SliceThickness=2, ImagePositionPatient=[0, 0, "1e30"]).rename(tmp_path / "in/9.dcm")
    (tmp_path / "in/t.csv").write_text("File_name,Bounding_boxes,Spacing_mm_px_,Image_size\na_1.png,x,y,z\n")
    (tmp_path / "in/m.nii").write_bytes(b"\0" * 400)
    (patient,), problems = scan_folder(tmp_path / "in")
    assert [a.kind for a in patient.annotations] == ["seg"]
    failed = {p.path.name for p in problems if p.failed}
    assert {"9.dcm", "m.nii"} <= failed
    assert all(len(p.reason.splitlines()) == 1 for p in problems)


def test_empty_pixels_and_rows_that_are_no_number(good, stack, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("ct", "seg"):
        (tmp_path / "in" / name).symlink_to(good / name)
    ds = pydicom.dcmread(good / "dicom-mask/MASKS_DICOM/tumour/image_1")
    ds["PixelData"].value = None
    ds.save_as(tmp_path / "in/image_1")
    ds = pydicom.dcmread(good / "ct/0.dcm")
    ds["Columns"] = pydicom.DataElement("Columns", "LO", "many")
    ds.save_as(tmp_path / "in/image_2")
    patients, problems = scan_folder(tmp_path / "in")
    assert len(patients) == 1 and "image_2" in {p.path.name for p in problems}
    assert "bytes for" in refused(outlined("dicom-mask", stack), tmp_path / "in/image_1")


def test_a_mask_without_an_orientation(good, tmp_path):
    shutil.copytree(good / "ct", tmp_path / "in/ct")
    shutil.copytree(good / "dicom-mask", tmp_path / "in/masks")
    for path in (p for p in (tmp_path / "in/masks").rglob("*") if p.is_file()):
        ds = pydicom.dcmread(path)
        del ds.ImageOrientationPatient
        ds.save_as(path)
    _, problems = scan_folder(tmp_path / "in")
    assert "lies on the slices of no CT series" in " ".join(p.reason for p in problems)


def test_a_volume_with_nan_in_one_slice(tmp_path):
    values = np.random.default_rng(0).normal(0, 200, (32, 32, 4)).astype(np.float32)
    values[5, 5, 1] = np.nan
    nib.Nifti1Image(values, np.diag([0.7, 0.7, 2, 1])).to_filename(tmp_path / "ct.nii")
    assert "NaN" in refused(fuzz.read_a_slice, tmp_path / "ct.nii")


def test_read_hu_names_a_slice_that_has_changed(good, stack, tmp_path):
    from dataclasses import replace

    gone = replace(stack.slices[0], path=tmp_path / "gone.dcm")
    with pytest.raises(InputError, match="No such file"):
        read_hu(gone)
