"""The page "What ingest refuses, and why": what real refusals say stands on it."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from liverdis.cohort.annotation.tables import lesion_table
from liverdis.cohort.archives import source_folder
from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.ct import read_slice
from liverdis.cohort.deidentify import load_key
from liverdis.cohort.example import write_example
from liverdis.cohort.folds import make_folds
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules, load_labels
from liverdis.cohort.manifest import load_manifest
from liverdis.core import InputError

PAGE = Path(__file__).parent.parent / "nbs/tutorials/refusals.ipynb"


def rows():
    "The messages of the page, as patterns, with their kinds"
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    text = "".join("".join(o.get("data", {}).get("text/markdown", "")) + "\n" for o in outputs)
    found = re.findall(r"^\| (.+) \| (error|left out|skipped|in doubt|note) \| `[\w.]+` \|$", text, re.M)
    patterns = [re.sub("‹[^›]*›", ".*", re.escape(said.replace("\\|", "|"))) for said, _ in found]
    return list(zip(patterns, (kind for _, kind in found)))


def kinds_of(message):
    "The kinds of the rows that a message fits"
    return {kind for pattern, kind in rows() if re.fullmatch(pattern, message, re.S)}


def text_file(path, text):
    path.write_text(text)
    return path


def zip_out_of_its_folder(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("../../evil", b"x")
    with source_folder(path):
        pass


FOUR_PATIENTS = pd.DataFrame(dict(case_id=list("abcd"), patient_id=list("abcd"), label=["cyst", "metastasis"] * 2))
REFUSALS = {
    "labels without a column": lambda f: load_labels(text_file(f / "a.csv", "structure,label\nx,cyst\n")),
    "label that is none": lambda f: load_labels(text_file(f / "a.csv", "name,label\nx,tumour\n")),
    "table without lesions": lambda f: lesion_table(text_file(f / "a.csv", "row,col\n1,2\n")),
    "no DICOM": lambda f: read_slice(text_file(f / "a.dcm", "x" * 200)),
    "no such folder": lambda f: ingest(f / "none", f / "out"),
    "no CT": lambda f: ingest(f, f.with_name("out")),
    "no manifest": lambda f: load_manifest(f / "none.csv"),
    "short key": lambda f: load_key(text_file(f / "a.key", "abc")),
    "no patient to spare": lambda f: make_folds(FOUR_PATIENTS, 2, 0.3, seed=0),
    "zip that leads out": lambda f: zip_out_of_its_folder(f / "a.zip"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_stands_on_the_page(tmp_path, what):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError) as e:
        REFUSALS[what](tmp_path / "in")
    assert "error" in kinds_of(str(e.value)), str(e.value)


def test_what_is_skipped_stands_on_the_page(tmp_path):
    write_example(tmp_path / "in/a", "Doe^Jane", "4711", 1, [(6, 62, 46, 9)])
    (tmp_path / "in/help.pdf").write_bytes(b"%PDF")
    picture = io.BytesIO()
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(picture, "png")
    (tmp_path / "in/a/logo_1.png").write_bytes(picture.getvalue())
    done = ingest(tmp_path / "in", tmp_path / "out", LabelRules((("nothing", "cyst", "*"),)))
    skipped = {"; ".join(filter(None, row)) for row in zip(done.skipped.reason, done.skipped.todo)}
    reasons = {*skipped, *(p.reason for p in done.problems)}
    reasons = {re.sub(r"^\d+ x ", "", r).replace(": not read; ", ": ").removesuffix(": not read") for r in reasons}
    assert len(reasons) >= 2
    assert all(kinds_of(r) or r == "document" for r in reasons), reasons


def test_what_keeps_healthy_squares_away_is_skipped_on_the_page(tmp_path):
    write_example(tmp_path / "in/a", "Doe^Jane", "4711", 1, [(6, 62, 46, 9)])
    rules = LabelRules((("livertumor", "metastasis", "*"), ("liver", "ignore", "*")))
    options = IngestOptions(healthy=1, min_diameter_mm=100)
    skipped = ingest(tmp_path / "in", tmp_path / "out", rules, options=options).skipped
    reasons = {"; ".join(filter(None, row)) for row in zip(skipped.reason, skipped.todo)}
    assert not skipped.failed.any() and len(reasons) == 2
    assert all(kinds_of(r) == {"skipped"} for r in reasons), reasons


def test_a_message_that_nobody_gives_is_not_there():
    assert kinds_of("the moon is in the wrong house; wait for a week") == set()
