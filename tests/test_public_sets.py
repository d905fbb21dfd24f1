"""The recipes as a user runs them: on the layouts of the real data sets, with what goes wrong there."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from liverdis.cohort.example import write_deeplesion_example, write_mct_example
from liverdis.cohort.ingest import IngestOptions, ingest
from liverdis.cohort.labels import load_labels
from liverdis.cohort.manifest import load_manifest
from liverdis.cohort.phantom.realism import measure_cohort
from liverdis.cohort.recipes import DEEPLESION_COUNTS, deeplesion, lesanet_tags, mct_ltdiag, tagged_lesions
from liverdis.core import InputError
from liverdis.use.cli import app

ROOT = Path(__file__).parent.parent
REALDATA = Path(os.environ.get("LIVERDIS_REALDATA", ROOT / "../shared/realdata")).resolve()
TAGS = REALDATA / "deeplesion/text_mined_labels_171_and_split.json"
real = pytest.mark.skipif(
    not (REALDATA / "deeplesion").is_dir(),
    reason=f"no DeepLesion at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it",
)


def run(*words):
    "The command in this process: exit code and what it printed"
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write_tags(path, labels):
    "Made-up tags in LesaNet's layout: row i of the table is a lesion of the liver tagged with the i-th label"
    terms = ["chest", "abdomen", "liver", *DEEPLESION_COUNTS]
    tags = {f"{p}_{what}": [] for p in ("train", "val", "test") for what in ("lesion_idxs", "relevant_labels")}
    tags["term_list"] = terms
    for row, label in enumerate(labels):
        part = ("train", "val", "test")[row % 3]
        tags[f"{part}_lesion_idxs"].append(row)
        tags[f"{part}_relevant_labels"].append([2, 1, terms.index(label), terms.index(label)])  # repeats occur
    path.write_text(json.dumps(tags))
    return path


def moved(box, down):
    "A box some pixels further down"
    x1, y1, x2, y2 = (float(v) for v in box.split(","))
    return f"{x1}, {y1 + down}, {x2}, {y2 + down}"


# DeepLesion


@pytest.mark.skipif(not TAGS.is_file(), reason=f"no tags of LesaNet at {TAGS}")
def test_published_tags_give_the_counts_that_we_print():
    found = tagged_lesions(TAGS)
    assert found.label.value_counts().to_dict() == DEEPLESION_COUNTS
    assert DEEPLESION_COUNTS == {"cyst": 92, "hemangioma": 42, "metastasis": 101}
    assert len(lesanet_tags(TAGS)) == 24121 and found.row.is_unique


def test_a_damaged_file_of_the_published_length_is_refused(tmp_path):
    tags = {f"{p}_{what}": [] for p in ("val", "test") for what in ("lesion_idxs", "relevant_labels")}
    tags |= {"term_list": ["liver", "cyst"], "train_lesion_idxs": list(range(24121))}
    tags["train_relevant_labels"] = [[0, 1]] * 24121
    (tmp_path / "tags.json").write_text(json.dumps(tags))
    with pytest.raises(InputError, match="the published file"):
        tagged_lesions(tmp_path / "tags.json")


@real
def test_deeplesion_from_twelve_real_slices_to_a_prediction(tmp_path):
    """Three classes, made up for the test, on real pixels: recipe, ingest, training and prediction.

    Twelve lesions of five patients are too few for two folds of three classes. So studies stand in for patients, and
    below each lesion lie three more boxes of its size and class.
    """
    data = tmp_path / "DeepLesion"
    shutil.copytree(REALDATA / "deeplesion", data)
    table = pd.read_csv(data / "DL_info.csv", dtype=str)
    table["Patient_index"] = table.Patient_index + table.Study_index.str.zfill(2)
    boxes = [table.Bounding_boxes.map(lambda box, down=down: moved(box, down)) for down in (0, 60, 120, 180)]
    pd.concat([table.assign(Bounding_boxes=b) for b in boxes]).to_csv(data / "DL_info.csv", index=False)
    tags = write_tags(tmp_path / "tags.json", list(DEEPLESION_COUNTS) * 16)

    code, said = run("recipe", "deeplesion", data, "--tags", tags, "--out", tmp_path / "prepared")
    assert code == 0 and "text-mined" in said and "phase is not recorded" in said and "no healthy class" in said
    step = next(line for line in said.splitlines() if line.startswith("next: liverdis ")).split()[2:]
    code, said = run(*step)
    assert code == 0, said
    cohort = tmp_path / "prepared-cohort"
    made = load_manifest(cohort / "manifest.csv").df
    assert made.label.value_counts().to_dict() == dict.fromkeys(DEEPLESION_COUNTS, 16)
    assert made.patient_id.nunique() == 8

    out = tmp_path / "run"
    trained = "--manifest", cohort / "manifest.csv", "--preset", "smoke", "--folds", 2, "--out", out
    code, said = run("reproduce", *trained)
    assert code == 0, said
    row = made.iloc[0]
    paths = cohort / row.image_path, "--annotation", cohort / row.annotation_path, "--segment", row.segment
    code, said = run("predict", out, *paths)
    assert code == 0 and all(label in said for label in DEEPLESION_COUNTS), said


@real
def test_each_real_lesion_keeps_its_box_and_its_class(tmp_path):
    labels = list(DEEPLESION_COUNTS) * 4
    prepared = deeplesion(REALDATA / "deeplesion", write_tags(tmp_path / "tags.json", labels), tmp_path / "p")
    whole, kept = (pd.read_csv(f / "DL_info.csv") for f in (REALDATA / "deeplesion", prepared.source))
    assert kept.File_name.tolist() == whole.File_name.tolist() and prepared.lesions.label.tolist() == labels
    ends = np.array([[float(v) for v in m.split(",")] for m in kept.Measurement_coordinates]).reshape(12, 4, 2)
    boxes = np.array([[float(v) for v in b.split(",")] for b in kept.Bounding_boxes]).reshape(12, 2, 2)
    assert np.allclose(boxes[:, 0], ends.min(1), atol=0.01) and np.allclose(boxes[:, 1], ends.max(1), atol=0.01)
    assert (prepared.source / "Images_png").is_dir() and not list(REALDATA.glob("deeplesion/source"))


def test_patient_one_keeps_its_label(tmp_path):
    "The lesion `...png:1 type4` of patient 1 was asked for as `...png:* type4`, and its line matched nothing"
    tags = write_deeplesion_example(tmp_path / "DeepLesion", ["cyst", "metastasis", "hemangioma"])
    prepared = deeplesion(tmp_path / "DeepLesion", tags, tmp_path / "prepared")
    made = ingest(prepared.source, tmp_path / "cohort", load_labels(prepared.labels), prepared.kind)
    assert sorted(made.manifest.df.label) == ["cyst", "hemangioma", "metastasis"]


def test_a_shortened_table_is_refused(tmp_path):
    tags = write_deeplesion_example(tmp_path / "DeepLesion", ["cyst", "metastasis", "hemangioma"])
    table = pd.read_csv(tmp_path / "DeepLesion/DL_info.csv")
    table.iloc[1:].to_csv(tmp_path / "DeepLesion/DL_info.csv", index=False)  # now every row has its neighbour's tag
    code, _ = run("recipe", "deeplesion", tmp_path / "DeepLesion", "--tags", tags, "--out", tmp_path / "p")
    assert code == 2 and not (tmp_path / "p").exists()


def test_tags_that_cannot_be_used_are_counted(tmp_path):
    tags = write_deeplesion_example(tmp_path / "DeepLesion", ["cyst"] * 4)
    table = pd.read_csv(tmp_path / "DeepLesion/DL_info.csv")
    table["Coarse_lesion_type"], table["Possibly_noisy"] = [6, 4, -1, 4], [0, 1, 0, 0]
    table.to_csv(tmp_path / "DeepLesion/DL_info.csv", index=False)
    (tmp_path / "DeepLesion/Images_png/000004_01_01/064.png").unlink()
    prepared = deeplesion(tmp_path / "DeepLesion", tags, tmp_path / "p")
    assert prepared.lesions.patient_id.tolist() == ["3"]
    assert [note.split()[0] for note in prepared.notes[:3]] == ["1", "1", "1"]


def test_a_folder_with_other_things_is_not_emptied(tmp_path):
    tags = write_deeplesion_example(tmp_path / "DeepLesion", ["cyst"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        deeplesion(tmp_path / "DeepLesion", tags, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


# MCT-LTDiag and LLD-MMRI


@pytest.mark.parametrize("suffix, separator", [(".tab", "\t"), (".csv", ",")])
def test_mct_gives_every_patient_its_own_class(tmp_path, suffix, separator):
    write_mct_example(tmp_path / "MCT", ["HH", "CRLM", "ICC", "BCLM"])
    table = pd.read_csv(tmp_path / "MCT/meta_info_patient.tab", sep="\t")
    (tmp_path / "MCT/meta_info_patient.tab").unlink()
    table.to_csv(tmp_path / f"MCT/meta_info_patient{suffix}", sep=separator, index=False)
    code, said = run("recipe", "mct-ltdiag", tmp_path / "MCT", "--out", tmp_path / "p")
    assert code == 0, said
    options = IngestOptions(healthy=1)
    made = ingest(tmp_path / "p/source", tmp_path / "c", load_labels(tmp_path / "p/labels.csv"), "nifti", options)
    lesions = made.manifest.df[made.manifest.df.label != "healthy"]
    assert sorted(lesions.label) == ["hemangioma", "metastasis", "metastasis"]
    measured = pd.read_csv(tmp_path / "c/measurements.csv")
    assert (measured.hu_mean[measured.label == "hemangioma"] > 140).all()
    assert (measured.hu_mean[measured.label == "metastasis"] < 80).all()
    assert made.manifest.df.patient_id.nunique() == 4  # parenchyma of the patient with ICC, and not its tumour


def test_mct_benchmark_layout_without_a_table(tmp_path):
    write_mct_example(tmp_path / "MCT", ["HH", "CRLM"])
    for case, kind in (("230201a1", "HH"), ("230202a1", "CRLM")):
        for tree, file in (("volume", "NIFTI/pvp.nii.gz"), ("mask", "mask_pvp.nii.gz")):
            to = tmp_path / "B" / tree / kind / case / Path(file).name
            to.parent.mkdir(parents=True)
            shutil.copy(tmp_path / "MCT" / case / file, to)
    prepared = mct_ltdiag(tmp_path / "B", tmp_path / "p")
    assert prepared.lesions.set_index("case_id").label.to_dict() == {"230201a1": "hemangioma", "230202a1": "metastasis"}
    made = ingest(prepared.source, tmp_path / "c", load_labels(prepared.labels), prepared.kind)
    measured = pd.read_csv(tmp_path / "c/measurements.csv").set_index("label").hu_mean
    assert made.manifest.df.patient_id.nunique() == 2 and measured.hemangioma > 140 > 80 > measured.metastasis


def test_mri_makes_no_cohort(tmp_path):
    lesion = {"category": 4, "bbox": {"3D_box": {}}}
    series = {"studyUID": "1", "seriesUID": "2", "phase": "C+V", "annotation": {"lesion": {"0": lesion}}}
    (tmp_path / "LLD/labels").mkdir(parents=True)
    (tmp_path / "LLD/labels/Annotation.json").write_text(json.dumps({"Annotation_info": {"MR-1": [series]}}))
    code, said = run("recipe", "lld-mmri", tmp_path / "LLD", "--out", tmp_path / "p")
    assert code == 2 and "cyst" in said and not (tmp_path / "p").exists()


def test_mri_under_the_name_of_ct_is_refused(tmp_path):
    "A volume with a dark background and no negative values, as MRI is saved, with a mask beside it"
    rng, inside = np.random.default_rng(0), np.zeros((40, 40, 8))
    inside[8:32, 8:32] = 1
    tumour = np.zeros_like(inside)
    tumour[15:22, 15:22, 2:6] = 1
    mri = inside * rng.gamma(6, 80, inside.shape) + 300 * tumour
    (tmp_path / "MR-1").mkdir()
    for name, values in (("C+V", mri), ("tumour", tumour)):
        nib.Nifti1Image(np.int16(values), np.diag([1, 1, 3, 1])).to_filename(tmp_path / f"MR-1/{name}.nii.gz")
    (tmp_path / "labels.csv").write_text("name,label\ntumour*,cyst\n")
    code, said = run("ingest", tmp_path / "MR-1", "--out", tmp_path / "c", "--labels", tmp_path / "labels.csv")
    assert code == 2 and "Hounsfield units" in said and not (tmp_path / "c/manifest.csv").exists()


# How real the phantom is


@pytest.mark.skipif(not (REALDATA / "chaos03").is_dir(), reason=f"no CHAOS at {REALDATA}")
def test_stored_grain_of_real_ct_is_what_the_ct_gives(tmp_path):
    "Chaos03 alone, with squares drawn anew: their grain lies within what is stored for real parenchyma"
    stored = pd.read_csv(ROOT / "nbs/results/realism/regions.csv")
    stored = stored[(stored.source == "real") & (stored.tissue == "parenchyma")]
    (tmp_path / "sizes").mkdir()
    pd.DataFrame({"label": ["cyst"], "diameter_mm": [20]}).to_csv(tmp_path / "sizes/measurements.csv")
    (tmp_path / "key").write_text("17" * 32)  # the key decides where the squares lie
    (tmp_path / "key").chmod(0o600)
    keyed, options = dict(key=tmp_path / "key", match=tmp_path / "sizes"), IngestOptions(healthy=40)
    found = measure_cohort(ingest(REALDATA / "chaos03", tmp_path / "c", options=options, **keyed).manifest)
    means = stored.groupby("patient_id").noise_hu.mean()
    assert (means - found.noise_hu.mean()).abs().min() < 0.15 * found.noise_hu.mean()
