"""The `liverdis` command on input that is wrong: one line that names file and row, exit code 2, nothing written."""

import shutil
import subprocess
import warnings
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from highdicom import sr
from PIL import Image
from pydicom import Dataset, Sequence
from skimage.draw import polygon2mask
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

from liverdis.cohort.annotation.readers import ANNOTATION_KINDS, read_mask
from liverdis.cohort.cases import split_lesions
from liverdis.cohort.ct import read_slice, write_slice
from liverdis.cohort.manifest import file_checksum, load_manifest
from liverdis.cohort.phantom.cohort import write_phantom
from liverdis.cohort.roi import lesion_box
from liverdis.core import InputError
from liverdis.settings import preset
from liverdis.use import cli
from liverdis.use.cli import app
from liverdis.use.predict import Explanation, annotation_kind, as_json, classify
from liverdis.use.structured_report import _measurements, _region, write_structured_report

ROW = 3  # the spoiled row as a spreadsheet counts, header included


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    return write_phantom(
        tmp_path_factory.mktemp("cohort") / "phantom",
        counts=dict(cyst=6, metastasis=6, hemangioma=6, healthy=6),
        seed=3,
    ).root


@pytest.fixture
def spoil(cohort, tmp_path):
    """A copy of the cohort whose row `ROW` goes through `change(row, folder)`.

    Checksums are renewed, so that only the fault itself can be found."""

    def go(change):
        folder = tmp_path / "cohort"
        shutil.copytree(cohort, folder)
        df = load_manifest(folder / "manifest.csv").df.astype(object)
        row = df.loc[ROW - 2].copy()
        change(row, folder)
        if row.sha256 != "0" * 64 and (folder / row.image_path).is_file() and (folder / row.annotation_path).is_file():
            row.sha256 = file_checksum(folder / row.image_path, folder / row.annotation_path)
        df.loc[ROW - 2] = row
        df.to_csv(folder / "manifest.csv", index=False)
        return folder / "manifest.csv"

    return go


def missing(row, folder):
    (folder / row.image_path).unlink()


def truncated(row, folder):
    path = folder / row.image_path
    path.write_bytes(path.read_bytes()[:200_000])


def not_ct(row, folder):
    ds = pydicom.dcmread(folder / row.image_path)
    ds.Modality = "MR"
    ds.save_as(folder / row.image_path)


def png_mask(mask):
    def change(row, folder):
        Image.fromarray(mask).save(folder / "mask.png")
        row.annotation_path, row.annotation_kind, row.segment = "mask.png", "png-mask", ""

    return change


def one_pixel():
    mask = np.zeros((512, 512), np.uint8)
    mask[250, 250] = 255
    return mask


def other_image(row, folder):
    df = load_manifest(folder / "manifest.csv").df
    row.annotation_path = df[df.patient_id != row.patient_id].annotation_path.iloc[0]


def field(name, value):
    def change(row, folder):
        row[name] = value

    return change


def changed(row, folder):
    path = folder / row.image_path
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    row.sha256 = "0" * 64


FAULTS = {
    "file changed since": (changed, "have changed"),
    "missing DICOM": (missing, "no file"),
    "truncated DICOM": (truncated, None),
    "MR": (not_ct, "MR"),
    "annotation of another size": (png_mask(np.ones((64, 64), np.uint8)), "64"),
    "annotation of another image": (other_image, None),
    "empty mask": (png_mask(np.zeros((512, 512), np.uint8)), "empty"),
    "one pixel": (png_mask(one_pixel()), "1 x 1"),
    "unknown label": (field("label", "abscess"), "abscess"),
    "absolute path": (field("image_path", "/etc/passwd"), "absolute"),
    "path with ..": (field("image_path", "../x.dcm"), ".."),
}


@pytest.mark.parametrize("command", ["check", "reproduce"])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input(spoil, tmp_path, fault, command):
    change, words = FAULTS[fault]
    manifest, out = spoil(change), tmp_path / "run"
    args = {
        "check": ["check", str(manifest)],
        "reproduce": ["reproduce", "--manifest", str(manifest), "--preset", "smoke", "--out", str(out)],
    }
    r = CliRunner().invoke(app, args[command])
    assert r.exit_code == 2, r.output
    lines = r.stderr.strip().splitlines()
    assert f"row {ROW}" in lines[0] and (words is None or words in lines[0]), r.stderr
    assert len(lines) == 1 or (command == "check" and len(lines) == 2)  # check lists faulty rows and says how many
    assert not out.exists()


def test_too_few_patients(cohort, tmp_path):
    df = load_manifest(cohort / "manifest.csv").df
    few = df.drop(df.index[df.label == "cyst"][1:])
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    few.to_csv(folder / "manifest.csv", index=False)
    r = CliRunner().invoke(
        app,
        ["reproduce", "--manifest", str(folder / "manifest.csv"), "--preset", "smoke", "--out", str(tmp_path / "run")],
    )
    assert r.exit_code == 2 and "cyst" in r.stderr and len(r.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["auto", *ANNOTATION_KINDS])
def test_annotation_kinds_have_the_names_of_the_library(kind):
    ingest = get_command(app).commands["ingest"]
    assert ingest.make_context("ingest", ["src", "--out", "cohort", "--kind", kind]).params["kind"] == kind


def test_a_good_manifest_passes(cohort):
    r = CliRunner().invoke(app, ["check", str(cohort / "manifest.csv")])
    assert r.exit_code == 0 and "all 24 lesions can be used" in r.output


def a_prediction(image, annotation, segment, at=None, frame=None, whole=False):
    "By a network that has learned nothing"
    settings = preset("smoke")
    net = nn.Sequential(nn.Flatten(), nn.Linear(settings.roi_size**2, len(settings.classes)))
    return classify({"a": net, "b": net}, settings, image, annotation, segment, frame, at, whole)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_a_structured_report(cohort, tmp_path):
    "It warns of our own coding scheme, which it cannot know, and of nothing else"
    row = load_manifest(cohort / "manifest.csv").df.iloc[0]
    p = a_prediction(cohort / row.image_path, cohort / row.annotation_path, row.segment)
    of_run = replace(p, trained={"run": "demo", "arm": "proposed", "data": "phantom"})
    write_structured_report(of_run, tmp_path / "report.dcm")
    said = subprocess.run(["dciodvfy", tmp_path / "report.dcm"], capture_output=True, text=True).stderr
    assert "ComprehensiveSR" in said and "Error" not in said
    assert all("99LIVERDIS" in line for line in said.splitlines() if "Warning" in line)


def test_the_line_of_a_structured_report_lies_on_the_pixels_as_stored(cohort, tmp_path):
    "Of an image whose rows run to the patient's right, which the networks see turned"
    row = load_manifest(cohort / "manifest.csv").df.iloc[0]
    ct = read_slice(cohort / row.image_path)
    mask = read_mask(cohort / row.annotation_path, row.annotation_kind, row.segment, ct)[:, ::-1]
    ds = pydicom.dcmread(cohort / row.image_path)
    ds.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[:, ::-1]).tobytes()
    ds.save_as(tmp_path / "ct.dcm")
    Image.fromarray(np.uint8(mask > 0) * 255).save(tmp_path / "mask.png")
    given = tmp_path / "ct.dcm", tmp_path / "mask.png"
    p = a_prediction(*given, "")
    assert (p.mask != (mask > 0)).any()
    write_structured_report(p, tmp_path / "report.dcm")
    (group,) = sr.srread(tmp_path / "report.dcm").content.get_planar_roi_measurement_groups()
    inside = polygon2mask(mask.shape, group.roi.value[:, ::-1] - 0.5)
    assert (inside == (mask > 0)).all()


@pytest.mark.parametrize("way", [1, -1])
def test_one_of_several_lesions_is_asked_for_and_reported(cohort, tmp_path, way):
    "By a pixel of the image as it is stored, upright or not; without it they are refused"
    row = load_manifest(cohort / "manifest.csv").df.iloc[0]
    ds = pydicom.dcmread(cohort / row.image_path)
    ds.ImageOrientationPatient = [way, 0, 0, 0, 1, 0]
    ds.save_as(tmp_path / "ct.dcm")
    large, small = np.zeros((2, ds.Rows, ds.Columns), bool)
    large[20:60, 20:60] = small[70:90, 80:95] = True
    Image.fromarray(large | small).save(tmp_path / "mask.png")
    given = tmp_path / "ct.dcm", tmp_path / "mask.png", ""
    with pytest.raises(InputError, match="outlines 2 lesions.*--at ROW COL"):
        a_prediction(*given)
    p = a_prediction(*given, at=(75, 82))
    assert p.mask.sum() == small.sum() and (p.drawn == small).all()
    write_structured_report(p, tmp_path / "report.dcm")
    (group,) = sr.srread(tmp_path / "report.dcm").content.get_planar_roi_measurement_groups()
    assert (polygon2mask(small.shape, group.roi.value[:, ::-1] - 0.5) == small).all()


def test_a_lesion_in_two_parts_is_taken_whole_as_in_training(cohort, tmp_path):
    "Two arms of a U, which other slices join: one lesion to `ingest`, and one region of its whole mask"
    row = load_manifest(cohort / "manifest.csv").df.iloc[0]
    ct = read_slice(cohort / row.image_path)
    arms, bridge = np.zeros((2, *ct.hu.shape), bool)
    arms[200:230, 150:165] = arms[200:230, 175:205] = bridge[205:225, 150:190] = True
    (lesion,) = split_lesions({0: arms, 1: bridge})
    Image.fromarray(arms).save(tmp_path / "mask.png")
    given = cohort / row.image_path, tmp_path / "mask.png", ""
    with pytest.raises(InputError, match="outlines 2 lesions.*--whole if they are parts of one"):
        a_prediction(*given)
    p = a_prediction(*given, whole=True)
    assert p.box == lesion_box(lesion.on(0, ct.hu.shape), preset("smoke").margin, ct.spacing_mm)


def without(*keywords):
    return lambda ds: [delattr(ds, keyword) for keyword in keywords]


def empty_thickness(ds):
    ds.SliceThickness = None


def sequence(**attributes):
    "A sequence of one item"
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Sequence([item])


def enhanced(ds):
    "Two frames in one file, as newer scanners write them"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    ds.NumberOfFrames, ds.PixelData = 2, 2 * ds.PixelData
    take = lambda *keywords: {keyword: ds.pop(keyword).value for keyword in keywords}
    places, shared = [list(ds.ImagePositionPatient) for _ in range(2)], Dataset()
    places[1][2] += 3
    shared.PixelMeasuresSequence = sequence(**take("PixelSpacing", "SliceThickness"))
    shared.PlaneOrientationSequence = sequence(**take("ImageOrientationPatient"))
    shared.PixelValueTransformationSequence = sequence(**take("RescaleSlope", "RescaleIntercept"))
    frames = [sequence(PlanePositionSequence=sequence(ImagePositionPatient=place))[0] for place in places]
    del ds.ImagePositionPatient
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)


IMAGES = {
    "no thickness": without("SliceThickness"),
    "empty thickness": empty_thickness,
    "no place": without("ImagePositionPatient", "ImageOrientationPatient"),
    "many frames": enhanced,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_structured_report_of_an_image_that_says_little_of_its_geometry(lesion, kind):
    ds = pydicom.dcmread(lesion / "ct.dcm")
    ds.PatientID, ds.StudyInstanceUID = "4711", pydicom.uid.generate_uid()
    IMAGES[kind](ds)
    ds.save_as(lesion / "image.dcm")
    frame = 1 if kind == "many frames" else None
    p = a_prediction(lesion / "image.dcm", lesion / "mask.png", "", frame=frame)
    write_structured_report(p, lesion / "report.dcm")
    report = sr.srread(lesion / "report.dcm")
    (group,) = report.content.get_planar_roi_measurement_groups()
    (source,) = group.roi.ContentSequence
    assert (report.PatientID, source.referenced_frame_numbers) == ("4711", None if frame is None else [2])


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Иванов^Иван"),
    ],
)
def test_a_structured_report_names_the_patient_in_any_script(lesion, charset, name):
    ds = pydicom.dcmread(lesion / "ct.dcm")
    ds.SpecificCharacterSet, ds.PatientName, ds.StudyInstanceUID = charset, name, pydicom.uid.generate_uid()
    ds.save_as(lesion / "image.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_structured_report(a_prediction(lesion / "image.dcm", lesion / "mask.png", ""), lesion / "report.dcm")
    assert str(pydicom.dcmread(lesion / "report.dcm").PatientName) == name


@pytest.mark.parametrize(
    "way, notes",
    [
        ([1, 0, 0, 0, 1, 0], ()),
        ([-1, 0, 0, 0, -1, 0], ("slices lay turned or mirrored, and are turned upright",)),
        ([1, 0, 0, 0, 0, -1], ("slices are not axial",)),
    ],
)
def test_predict_notes_how_the_slice_lies(lesion, way, notes):
    ds = pydicom.dcmread(lesion / "ct.dcm")
    ds.ImageOrientationPatient = way
    ds.save_as(lesion / "image.dcm")
    assert a_prediction(lesion / "image.dcm", lesion / "mask.png", "").notes == notes


def test_numbers_of_a_structured_report_are_what_it_calls_them():
    said = {m.derivation.meaning: m.value for m in _measurements(pd.DataFrame({"cyst": [0.1, 0.4, 0.4]}))}
    assert said == {"Mean": pytest.approx(0.3), "Minimum": 0.1, "Maximum": 0.4}


def test_a_structured_report_counts_frames_from_one(cohort):
    ds = pydicom.dcmread(cohort / load_manifest(cohort / "manifest.csv").df.image_path[0])
    ds.SOPClassUID, ds.NumberOfFrames = pydicom.uid.EnhancedCTImageStorage, 3
    (source,) = _region(ds, np.array([[1.0, 1], [9, 1], [9, 9], [1, 1]]), 0).ContentSequence
    assert source.referenced_frame_numbers == [1]


@pytest.fixture
def lesion(cohort, tmp_path):
    "A CT slice of the cohort, and its outline as a mask in DICOM, a picture and a table of one box"
    row = load_manifest(cohort / "manifest.csv").df.iloc[0]
    ct = read_slice(cohort / row.image_path)
    mask = read_mask(cohort / row.annotation_path, row.annotation_kind, row.segment, ct)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = f"a,ct.dcm,{rows[0]},{rows[-1]},{cols[0]},{cols[-1]}"
    (tmp_path / "boxes.csv").write_text(f"lesion,image,row_min,row_max,col_min,col_max\n{box}\n")
    place = ct.spacing_mm, ct.position_mm
    write_slice(tmp_path / "ct.dcm", ct.hu, *place)
    write_slice(tmp_path / "mask16.dcm", mask, *place, RescaleIntercept=0)
    iodine = ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]
    write_slice(tmp_path / "iodine.dcm", ct.hu, *place, ImageType=iodine)
    write_slice(tmp_path / "scout.dcm", ct.hu, *place, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(tmp_path / "raw.dcm", ct.hu + 1024, *place, RescaleIntercept=0, PixelRepresentation=0)
    write_slice(tmp_path / "derived.dcm", ct.hu, *place, ImageType=["DERIVED", "SECONDARY", "MPR"])
    affine = np.diag([-ct.spacing_mm[1], -ct.spacing_mm[0], 1, 1.0])
    for name, values in ("raw", ct.hu + 1024), ("unit", ((ct.hu + 160) / 400).clip(0, 1)), ("mask", mask):
        nib.Nifti1Image(np.float32(values).T[..., None], affine).to_filename(tmp_path / f"{name}.nii")
    return tmp_path


@pytest.mark.parametrize(
    "image, said",
    [
        ("raw.dcm", "HU [+] 1024"),
        ("iodine.dcm", "DICOM map"),
        ("scout.dcm", "scout image"),
        ("mask16.dcm", "holds labels"),
        ("mask.png", "holds no CT"),
        ("raw.nii", "HU [+] 1024"),
        ("unit.nii", "a scale or a probability"),
        ("mask.nii", "holds no CT"),
        ("none.dcm", "No such file"),
    ],
)
def test_predict_refuses_what_ingest_refuses(lesion, image, said):
    frame = 0 if image.endswith(".nii") else None
    with pytest.raises(InputError, match=f"{image}: .*{said}"):
        a_prediction(lesion / image, lesion / "mask.png", "", frame=frame)


def test_predict_passes_on_what_the_readers_note(lesion, capsys):
    p = a_prediction(lesion / "derived.dcm", lesion / "mask.png", "")
    assert p.notes == ("images derived from others, not as the scanner made them",)
    p = a_prediction(lesion / "ct.dcm", lesion / "boxes.csv", "a")
    assert as_json(p)["notes"] == ["a box, no outline"]
    cli._say_prediction(replace(p, trained={"arm": "own"}), Explanation(None, None))
    assert "note: a box, no outline" in capsys.readouterr().out


def test_progress_in_a_log(monkeypatch, capsys):
    "A file gets no moving bar, but a line now and then, hours before the end"
    with cli._progress("training") as show:
        show(1, 4, "r0_f1_baseline")
        assert capsys.readouterr().out == ""  # the last line was less than a minute ago
        monkeypatch.setattr(cli, "_LINE_EVERY", 0)
        show(2, 4, "r0_f2_baseline")
        line = capsys.readouterr().out
    assert "50.0%" in line and "r0_f2_baseline" in line


def test_counts_are_printed_whole(capsys):
    cli._say_table(pd.DataFrame({"cases": [12345], "patients": [1234]}, index=["cyst"]))
    assert "12345" in (said := capsys.readouterr().out) and "1234 " in said


def test_a_damaged_outline_is_refused_in_one_line(tmp_path):
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    with open(path := tmp_path / "outline.dcm", "wb") as file:
        file.write(bytes(128) + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta, enforce_standard=False)
        file.write(b"no such data" * 9)
    with pytest.raises(InputError, match="outline.dcm"):
        annotation_kind(path)


def test_a_line_for_a_patient_who_is_not_here(tmp_path):
    "It is told from a line for a structure that is not here; no sentence ends in an empty list"
    rules = (("seg:3", "cyst", "P01"), ("seg:4", "cyst", "*"), ("seg:4", "cyst", "P1"))
    called = [("0a1b", "P1", "P1/ct", "P1", "ct"), ("2c3d", "P2", "ct"), ("4e5f", ".", "Roe")]
    names = {f"s-{k}": f"seg:{k}" for k in (1, 2, 3)}
    result = SimpleNamespace(unmatched=rules, shared={}, names=names, patients=called)
    said = list(cli._odd_rules(result))
    assert said[0].endswith("fits no patient: none is called P01; the first ones here are P1, P2, Roe")
    assert all(line.endswith("fits no structure; the first ones here are seg:1, seg:2, seg:3") for line in said[1:])
    nothing = SimpleNamespace(unmatched=rules, shared={}, names={}, patients=[])
    assert [line.split("fits ")[1] for line in cli._odd_rules(nothing)] == [
        "no patient: none is called P01",
        "no structure",
        "no patient: none is called P1",
    ]
