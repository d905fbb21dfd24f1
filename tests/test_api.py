"""The library as a program of one's own calls it: what it refuses in one line, and what it leaves alone."""

import json
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from liverdis.cohort.ingest import _sizes_of
from liverdis.cohort.manifest import load_manifest, save_manifest
from liverdis.cohort.phantom.cohort import phantom_in, write_phantom
from liverdis.core import CLASSES, InputError
from liverdis.method.arms import ARMS, GENERATORS, load_arms
from liverdis.method.mixture import mixing_proportions
from liverdis.method.vae import ConditionalVAE
from liverdis.settings import preset, settings_from_dict
from liverdis.study.codes import pca_mse, real_or_decoded, spectrum_gap
from liverdis.study.evaluate import PREDICTION_COLUMNS, calibration, confusion, read_predictions, reliability
from liverdis.study.experiment import Job, reproduce, run_tasks
from liverdis.study.guards import TOO_FEW_CASES, class_in_code
from liverdis.study.run import Run, Task, fold_table, read_results, start_run, task_key
from liverdis.study.studies import load_study, variants
from liverdis.use import cli
from liverdis.use.predict import _folds
from liverdis.use.retrieval import unlike
from liverdis.use.trained import open_fold

SMOKE = preset("smoke")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"), dict(zip(CLASSES, SMOKE.cohort)), seed=1)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.iloc[::-1], "another order"),
        (lambda t: t.iloc[3:], "other cases"),
        (lambda t: t.drop(columns="repeat"), "no column repeat"),
        (lambda t: t.assign(repeat=1), "count them from 0"),
    ],
)
def test_folds_of_other_cases_are_refused(cohort, tmp_path, change, said):
    "Regions are stored in the order of the manifest, so these would be trained under another case's label"
    with pytest.raises(InputError, match=said):
        start_run(tmp_path / "run", cohort, SMOKE, folds=change(fold_table(cohort, SMOKE, 1)))
    assert not (tmp_path / "run").exists()


def test_a_changed_file_is_refused(tmp_path):
    "Even if it can be read as well as before"
    cohort = write_phantom(tmp_path / "phantom", {"cyst": 6, "metastasis": 6}, seed=1)
    path = cohort.root / cohort.df.image_path[0]
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a pixel is one grey value off
    path.write_bytes(content)
    with pytest.raises(InputError, match=cohort.df.case_id[0]):
        start_run(tmp_path / "run", cohort, SMOKE)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    "Two repeats whose encoders are finished, though not trained"
    run = start_run(tmp_path_factory.mktemp("run"), cohort, SMOKE, repeats=2)
    networks = {
        "disentangle": GENERATORS["disentangle"].network(SMOKE),
        "swap_classifier": ARMS["baseline"].model(SMOKE),
    }
    for task in run.tasks_of(*networks):
        run.finish(task, {"task": {"kind": task.kind}, "classes": SMOKE.classes}, networks[task.kind])
    return run


@pytest.mark.parametrize("repeat", [0, 1])
@pytest.mark.parametrize("fold", [1, 2])
def test_an_opened_fold_has_the_parts_of_this_fold_and_repeat(run, repeat, fold):
    assert open_fold(run.folder, fold, repeat).cases.part.equals(run.cases(repeat)[f"fold_{fold}"])


def test_every_fold_of_the_first_repeat_explains(run):
    folds = range(1, run.info["n_folds"] + 1)
    assert [fold.task for fold in _folds(run)] == [Task(0, fold, "disentangle") for fold in folds]


@pytest.mark.parametrize(
    "fact, value",
    [
        ("data_checksum", "other"),
        ("folds_sha256", {"0": "other"}),
        ("device", "other"),
        ("versions", "other"),
        ("git_revision", "other"),
    ],
)
def test_a_task_of_other_data_or_programs_is_not_taken_over(run, fact, value):
    other, task = Run(run.folder), Task(0, 1, "baseline")
    assert task_key(other, task) == task_key(run, task)
    other.info = {**run.info, fact: value}
    assert task_key(other, task) != task_key(run, task)


def test_twelve_lesions_of_two_classes_are_enough(tmp_path):
    "A first try with lesions of one's own: every task ends, even those that measure, on three to five test cases"
    twelve = write_phantom(tmp_path / "phantom", {"cyst": 6, "metastasis": 6}, seed=1)
    results = reproduce(tmp_path / "run", twelve, preset("smoke", batch_size=4), jobs=1, device="cpu")
    assert (
        min(fold["n_test"] for fold in results["folds"]) < 5 and sum(fold["n_test"] for fold in results["folds"]) == 12
    )
    assert all(0 <= fold["disentangle"]["real_or_decoded"] <= 1 for fold in results["folds"])


def test_a_cohort_that_does_not_fill_a_batch_is_refused_before_anything_is_written(tmp_path):
    few = write_phantom(tmp_path / "phantom", {"cyst": 6, "metastasis": 6}, seed=1)
    with pytest.raises(InputError, match="do not fill a batch of 32: use more cases, fewer folds, or a batch_size of"):
        start_run(tmp_path / "run", few, preset("smoke", batch_size=32))
    assert not (tmp_path / "run").exists()


def test_no_phantom_replaces_a_manifest(cohort, tmp_path):
    "Not even one that calls its files as the phantom does; the phantom itself may be written again"
    save_manifest(cohort.df[:4].assign(case_id=list("abcd")), path := tmp_path / "manifest.csv")
    before = path.read_bytes()
    for write in (write_phantom, phantom_in, cli._phantom):
        with pytest.raises(InputError, match="phantom"):
            write(tmp_path, dict(zip(CLASSES, SMOKE.cohort)))
        assert path.read_bytes() == before
    counts = {"cyst": 1}
    assert write_phantom(tmp_path / "p", counts).df.equals(write_phantom(tmp_path / "p", counts).df)


def predictions(*arms):
    p = np.full((2, 4), 0.25)
    rows = [(0, 1, arm, c, c, label, "cyst", *q) for arm in arms for c, label, q in zip("ab", ("cyst", "healthy"), p)]
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def test_a_study_of_one_arm_tells_where_its_results_are(capsys, tmp_path):
    cli._tell_study(tmp_path, predictions("baseline").assign(variant="lam=-0.1"), [])
    assert "predictions.csv.gz" in capsys.readouterr().out


@pytest.mark.parametrize("of", [confusion, reliability, calibration])
def test_an_arm_that_is_not_there(of):
    with pytest.raises(InputError, match="no arm 'baselin' in the predictions; they have baseline"):
        of(predictions("baseline"), "baselin")


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2,3\n"])
def test_no_predictions(tmp_path, content):
    if content is not None:
        (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(InputError, match="predictions.csv"):
        read_predictions(tmp_path / "predictions.csv")


def test_processes_of_others_live_on(cohort, tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()

    def watch(waiting, running):
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        run_tasks([start_run(tmp_path / "run", cohort, SMOKE)], 1, watch)
    assert other.is_alive()
    other.kill()


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("mine.txt", "", "let its name end in .py"),
        ("mine.py", "x = 1\ndef mine(:\n", "line 2"),
        ("mine.py", "x = 1\n", "no function there"),
    ],
)
def test_file_without_arms(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        load_arms(tmp_path / name)


def test_file_of_arms_is_a_module_like_others(tmp_path, monkeypatch):
    "A dataclass with annotations that are read later looks its module up"
    monkeypatch.setattr("liverdis.method.arms.ARMS", dict(ARMS))
    (tmp_path / "own_module.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom liverdis.method.arms import arm\n"
        "@dataclass\nclass How:\n    share: float = 1.0\n\n@arm\ndef own(fold):\n    'mine'\n"
    )
    assert load_arms(tmp_path / "own_module.py") == ["own"]


def test_codes_that_are_all_alike_make_finite_distances():
    "A generator whose r has collapsed: such a code tells nothing, and is no reason for NaN"
    same = torch.zeros(6, 2)
    fold = SimpleNamespace(
        spaces={"c": same + torch.arange(6)[:, None], "r": same},
        rows=lambda part: [0, 1, 2, 3, 4] if part == "train" else [5],
        net=SimpleNamespace(spec_encoder=lambda x: x[:, 0, 0], unspec_encoder=lambda x: same[: len(x)]),
        standardise=lambda c, r: {"c": c, "r": r},
    )
    far = unlike(fold, torch.ones(1, 1, 2, 2))
    assert np.isfinite(far.to_numpy(float)).all() and far.r[0] == 0


def test_oracle_that_is_none(cohort, tmp_path):
    "Refused before anything is written"
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    for name, said in (("none.safetensors", "is missing"), ("bad.safetensors", "is damaged")):
        with pytest.raises(InputError, match=said):
            reproduce(tmp_path / "run", cohort, SMOKE, device="cpu", oracle=tmp_path / name)
        assert not (tmp_path / "run").exists()


def test_weights_that_are_gone(cohort, tmp_path):
    run = start_run(tmp_path / "run", cohort, SMOKE)
    run.record_file(task := Task(0, 1, "baseline")).parent.mkdir()
    run.record_file(task).write_text(
        json.dumps({"task": {"kind": task.kind}, "classes": run.settings.classes, "weights_sha256": ""})
    )
    assert Job(run, task).done
    with pytest.raises(InputError, match="r0_f1_baseline.safetensors: is missing"):
        run.network(task)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["window_centre", "margin", "lam", "classifier_lr"])
def test_settings_are_numbers(name, value):
    with pytest.raises((InputError, ValidationError), match=name):
        settings_from_dict({name: value})


def test_mixtures_of_small_concentration_sum_to_one():
    "A Dirichlet draw of small alpha can be zero for every class that enters"
    w = mixing_proportions(torch.rand(1, 4, 3), torch.tensor([0]), torch.zeros(1, 4), 1)
    assert w.sum() == 1 and (w > 0).sum() == 2


def test_vae_needs_room_for_the_class():
    with pytest.raises(InputError, match="code_size 2"):
        ConditionalVAE(preset("smoke", code_size=2))


@pytest.mark.parametrize(
    "text, said",
    [
        (b"about = 'x'\nphantom_seed = -1\n", "phantom_seed"),
        (b"about = 'x'\nmore_cohorts = [-1]\n", "more_cohorts"),
        (b"about = '\xff'\n", "not TOML"),
        (b"about = 'x'\n[sweep]\nlam = [-0.1, -0.1]\n", "lam=-0.1: is given twice"),
    ],
)
def test_studies_that_cannot_be(tmp_path, text, said):
    (tmp_path / "s.toml").write_bytes(text)
    with pytest.raises(InputError, match=said):
        variants(load_study(tmp_path / "s.toml"))


def test_blank_rows_at_the_end_of_a_manifest(cohort, tmp_path):
    "As editors and spreadsheets leave them"
    save_manifest(cohort.df, path := tmp_path / "manifest.csv")
    with path.open("a") as file:
        file.write("\n,,,,\n\n")
    assert json.dumps(load_manifest(path).df.to_dict()) == json.dumps(cohort.df.to_dict())


class OnApple(torch.Tensor):
    "A tensor on a device that has no float64"

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_what_is_measured_needs_no_float64_on_the_device():
    x, y = (torch.rand(12, 1, 16, 16).as_subclass(OnApple) for _ in range(2))
    assert all(np.isfinite(v) for v in (pca_mse(x, y, 3), spectrum_gap(x, y), real_or_decoded(x, y)))


def test_a_setting_called_like_an_argument_is_one_that_is_not_known():
    with pytest.raises(InputError, match="setting 'name' is not known"):
        preset("smoke", **{"name": 3})


def test_results_that_are_damaged(tmp_path):
    (tmp_path / "results.json").write_text('{"folds": [')
    with pytest.raises(InputError, match="results.json: is empty or damaged"):
        read_results(tmp_path)


def test_another_table_of_measurements(tmp_path):
    (tmp_path / "measurements.csv").write_text("case,mm\na,3\n")
    with pytest.raises(InputError, match="has no measurements.csv that can be read"):
        _sizes_of(tmp_path)


def test_a_part_of_one_class_tells_nothing():
    assert class_in_code(1.0, 1.0, 10) == TOO_FEW_CASES
