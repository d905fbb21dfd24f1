"""The recipes in data_manifest: complete, indexed, their commands valid, their labels no more than the source says."""

import os
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command

from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LABELS, Named, load_labels
from liverdis.cohort.recipes import _mct_kinds
from liverdis.core import CLASSES, InputError
from liverdis.use.cli import app

FOLDER = Path(__file__).parent.parent / "data_manifest"
RECIPES = [
    "chaos", "colorectal-liver-metastases", "deeplesion", "hcc-tace-seg", "ircadb", "lits", "lld-mmri", "mct-ltdiag"
]  # fmt: skip
SECTIONS = ["Licence", "Cite", "Size", "Classes", "Get it", "Layout", "Ingest", "Traps"]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
REALDATA = Path(os.environ.get("LIVERDIS_REALDATA", FOLDER.parent / "../shared/realdata")).resolve()


def recipe(name):
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def commands(text):
    "The `liverdis` lines in the shell blocks of a page, as lists of words"
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("liverdis ")]


def test_every_recipe_is_here_and_in_the_index():
    assert sorted(p.stem for p in FOLDER.glob("*.md") if p.name != "README.md") == RECIPES
    rows = re.findall(r"^\| \[[^]]+\]\(([\w-]+)\.md\)[^|]* (\|.*)\|$", README, re.M)
    assert sorted(name for name, _ in rows) == RECIPES
    header = next(line for line in README.splitlines() if line.startswith("| set"))
    assert all(f"| {c} " in header for c in CLASSES)
    assert all(cells.count("|") == header.count("|") - 2 for _, cells in rows)
    assert "None of these sets supplies all four classes" in README and "source_probe" in README


@pytest.mark.parametrize("name", RECIPES)
def test_sections(name):
    parts = re.split(r"^## (.*)\n", recipe(name), flags=re.M)
    assert parts[1::2] == SECTIONS
    assert all(len(body.split()) > 3 for body in parts[2::2])
    said = dict(zip(parts[1::2], parts[2::2]))
    assert "10." in said["Cite"] or "no DOI" in said["Cite"]
    assert "http" in said["Get it"] and "downloads nothing" in said["Get it"]
    assert all(c in said["Classes"] for c in CLASSES)


@pytest.mark.parametrize("name", [*RECIPES, "README"])
def test_commands_are_understood(name):
    found = commands(recipe(name))
    assert any(words[0] == "ingest" for words in found) or name == "lld-mmri"  # MRI
    for command, *words in found:
        context = get_command(app).commands[command].make_context(command, list(words))  # a bad option or value raises
        labels = context.params.get("labels")
        if labels and labels.parts[0] == "data_manifest":
            load_labels(FOLDER.parent / labels)


def test_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match="--slice"):
        get_command(app).commands["ingest"].make_context("ingest", ["A", "--out", "B", "--slice", "all"])


def test_every_labels_file_belongs_to_a_recipe():
    files = sorted(FOLDER.glob("*.labels.csv"))
    assert files and all(p.name in recipe(p.name.removesuffix(".labels.csv")) for p in files)
    for p in files:
        assert {label for _, label, _ in load_labels(p).rules} <= set(LABELS) - {"healthy"}


@pytest.mark.parametrize(
    "name, structure, patient, label",
    [
        ("ircadb", "livercyst", "3Dircadb1.1", "cyst"),
        ("ircadb", "livercystI", "3Dircadb1.1", "cyst"),
        ("ircadb", "liverkyste", "3Dircadb1.9", "cyst"),
        ("ircadb", "livertumor1", "3Dircadb1.17", None),
        ("ircadb", "livertumors", "3Dircadb1.2", None),
        ("ircadb", "metastasectomie", "3Dircadb1.14", "avoid"),
        ("ircadb", "tumor", "3Dircadb1.7", "ignore"),
        ("ircadb", "leftsurretumor", "3Dircadb1.5", "ignore"),
        ("ircadb", "rightsurrenalGland", "3Dircadb1.5", "ignore"),
        ("ircadb", "liver", "3Dircadb1.1", "liver"),
        ("ircadb", "rightkidney", "3Dircadb1.1", "ignore"),
        ("ircadb", "skin", "3Dircadb1.1", "ignore"),
        ("colorectal-liver-metastases", "Tumor_12", "CRLM-CT-1001", "metastasis"),
        ("colorectal-liver-metastases", "Liver_Remnant", "CRLM-CT-1001", "ignore"),
        ("colorectal-liver-metastases", "Liver", "CRLM-CT-1001", "liver"),
        ("hcc-tace-seg", "Mass", "HCC_009", "avoid"),
        ("hcc-tace-seg", "Portal vein", "HCC_009", "ignore"),
        ("lits", "segmentation-3:1", "volume-3", "liver"),
        ("lits", "segmentation-3:2", "volume-3", None),
        ("lits", "liver_48:2", "liver_48", None),
        ("lits", "liver_130:1", "liver_130", "liver"),
        ("lits", "segmentation-128:1", "volume-128", "liver"),
        ("mct-ltdiag", "liver_mask_pvp", "230218a6", "liver"),
        ("mct-ltdiag", "tumor_*", "230218a6", None),
        ("deeplesion", "002648_01_01_061.png:1 type4", "2648", None),
        ("deeplesion", "000001_01_01_109.png:1 type5", "1", "ignore"),
        ("deeplesion", "000001_01_01_109.png:1 type-1", "1", "ignore"),
    ],
)
def test_what_the_labels_say(name, structure, patient, label):
    assert load_labels(FOLDER / f"{name}.labels.csv").of(Named(structure), (patient,)) == label


@pytest.mark.parametrize("stem", ["volume-", "liver_"])
def test_lits_leaves_out_3d_ircadb(stem):
    labels = load_labels(FOLDER / "lits.labels.csv")
    left_out = [n for n in range(131) if labels.of(Named(f"{stem}{n}:1"), (f"{stem}{n}",)) == "ignore"]
    assert left_out == list(range(28, 48))


# DeepLesion on real rows: 12 key slices whose boxes, seen by eye, all lie in the liver

deeplesion = pytest.mark.skipif(
    not (REALDATA / "deeplesion").is_dir(),
    reason=f"no DeepLesion at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it",
)


def picked(labels, out):
    "The structures of the real DeepLesion rows that the recipe's labels file leaves to be named"
    done = ingest(REALDATA / "deeplesion", out, load_labels(labels), "boxes")
    return done.skipped.what[done.skipped.todo.fillna("").str.contains("|", regex=False)].map(done.names)


@deeplesion
def test_deeplesion_recipe_picks_the_liver(tmp_path):
    table = pd.read_csv(REALDATA / "deeplesion/DL_info.csv")
    found = picked(FOLDER / "deeplesion.labels.csv", tmp_path / "out")
    assert len(found) == len(table) == 12 and found.str.endswith("type4").all()
    (code,) = re.findall(r"Coarse_lesion_type == '(\d)'", recipe("deeplesion"))
    assert (table.Coarse_lesion_type == int(code)).all() and f"**{code} liver**" in recipe("deeplesion")


@deeplesion
def test_deeplesion_recipe_with_the_code_of_the_lung_picks_nothing(tmp_path):
    wrong = (FOLDER / "deeplesion.labels.csv").read_text().replace("type5", "type4")
    (tmp_path / "wrong.csv").write_text(wrong)
    assert len(picked(tmp_path / "wrong.csv", tmp_path / "out")) == 0


@deeplesion
def test_deeplesion_boxes_are_no_lung(tmp_path):
    (tmp_path / "labels.csv").write_text("name,label\n* type4,cyst\n")
    ingest(REALDATA / "deeplesion", tmp_path / "out", load_labels(tmp_path / "labels.csv"), "boxes")
    measured = pd.read_csv(tmp_path / "out/measurements.csv")
    assert len(measured) == 12 and measured.hu_mean.between(20, 160).all()  # soft tissue; the lung has -800 HU


def test_a_table_of_mct_that_is_empty(tmp_path):
    (tmp_path / "meta_info_patient.tab").write_text("")
    with pytest.raises(InputError, match="meta_info_patient.tab"):
        _mct_kinds(tmp_path)
