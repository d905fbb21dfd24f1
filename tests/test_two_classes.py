"""A cohort of one's own with two of the four classes, from two sources: joined, checked, trained, reported."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from liverdis.cohort.ct import write_slice
from liverdis.cohort.folds import make_folds
from liverdis.cohort.joining import join_manifests
from liverdis.cohort.manifest import file_checksum, load_manifest, save_manifest
from liverdis.cohort.roi import load_rois
from liverdis.cohort.sources import source_probe
from liverdis.core import InputError
from liverdis.method.arms import ARMS, GENERATORS, ArmFold
from liverdis.method.data import dataloaders
from liverdis.method.models import classifier_network
from liverdis.settings import preset
from liverdis.study.paper_figures import fig5
from liverdis.study.report import read_run, table2
from liverdis.study.run import Run, start_run
from liverdis.use.cli import app

PATIENTS = 6  # a source and class
TRAINED = ("metastasis", "healthy")


def write_source(folder, grain, seed):
    "Metastases and healthy squares of `PATIENTS` patients each, as DICOM slices with PNG masks, from one scanner"
    rng, rows = np.random.default_rng(seed), []
    y, x = np.mgrid[:64, :64]
    for label, drop in (("metastasis", 50), ("healthy", 0)):
        for p in range(PATIENTS):
            case = f"{folder.name}-{label}-{p}"
            mask = np.hypot(y - rng.uniform(26, 36), x - rng.uniform(26, 36)) < rng.uniform(10, 14)
            noise = gaussian_filter(rng.normal(size=mask.shape), grain)
            (folder / case).mkdir(parents=True)
            files = folder / case / "ct.dcm", folder / case / "mask.png"
            write_slice(files[0], rng.normal(105, 8) - drop * mask + 12 * noise / noise.std())
            Image.fromarray(mask).save(files[1])
            rows.append(
                dict(
                    case_id=case,
                    patient_id=case,
                    series_uid="",
                    image_path=f"{case}/ct.dcm",
                    annotation_path=f"{case}/mask.png",
                    annotation_kind="png-mask",
                    segment="",
                    label=label,
                    phase="portal",
                    row_spacing_mm=1,
                    col_spacing_mm=1,
                    slice_thickness_mm=1,
                    sha256=file_checksum(*files),
                )
            )
    return save_manifest(rows, folder / "manifest.csv")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "Two cohorts side by side: north and south, whose noise differs in grain alone"
    root = tmp_path_factory.mktemp("sources")
    for i, (name, grain) in enumerate((("north", 1.0), ("south", 0.6))):
        write_source(root / name, grain, seed=i)
    return root


@pytest.fixture(scope="module")
def joined(sources):
    return join_manifests([sources / "north/manifest.csv", sources / "south/manifest.csv"], sources / "all.csv")


def test_joined_files_are_found(joined, sources):
    assert len(load_rois(joined, 0.25, 32)) == 4 * PATIENTS
    again = join_manifests(
        [sources / "north/../north/manifest.csv", sources / "south/manifest.csv"],
        sources / f"../{sources.name}/again.csv",
    )
    assert again.checksum == joined.checksum


@pytest.mark.parametrize(
    "names, out, said",
    [
        (("north", "south"), "north/all.csv", "write it to"),
        (("north", "north"), "all2.csv", "is also in north/manifest.csv"),
        (("north", "south"), "south/manifest.csv", "name of its own"),
        (("north", "east"), "all2.csv", "cannot be read"),
    ],
    ids=["below", "twice", "onto itself", "absent"],
)
def test_what_cannot_be_joined(sources, names, out, said):
    before = (sources / "south/manifest.csv").read_bytes()
    with pytest.raises(InputError, match=said) as e:
        join_manifests([sources / n / "manifest.csv" for n in names], sources / out)
    assert "\n" not in str(e.value)
    assert (sources / "south/manifest.csv").read_bytes() == before and not (sources / "all2.csv").exists()


def test_a_linked_cohort_can_be_joined(sources, tmp_path):
    (tmp_path / "linked").symlink_to(sources / "north", target_is_directory=True)
    m = join_manifests([tmp_path / "linked/manifest.csv"], tmp_path / "all.csv")
    assert m.df.image_path[0].startswith("linked/") and len(load_rois(m, 0.25, 32)) == 2 * PATIENTS


@pytest.mark.parametrize("classes", [("cyst", "healthy"), ("metastasis", "hemangioma", "healthy")])
@pytest.mark.parametrize("n_folds", [2, 3])
def test_folds_over_the_classes_there_are(classes, n_folds):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        label = rng.permutation(np.repeat(classes, 12))
        patient = np.repeat(np.arange(len(label)), rng.integers(1, 4, len(label)))[: len(label)]
        df = pd.DataFrame(
            dict(case_id=[f"{i:02}" for i in range(len(label))], patient_id=patient.astype(str), label=label)
        )
        if df.groupby("label").patient_id.nunique().min() < n_folds + 2:
            continue
        folds = make_folds(df, n_folds, 0.3, seed)
        for k in range(1, n_folds + 1):
            parts = folds.groupby(f"fold_{k}").label.agg(set)
            assert parts["train"] == set(classes) and set(parts.index) == {"train", "valid", "test"}


def test_the_sources_are_told_apart(joined):
    rois = load_rois(joined, 0.25, 32)
    probe = source_probe(
        rois, joined.df.image_path.str.split("/").str[0], joined.df.label, joined.df.patient_id, permutations=49
    )
    assert (
        probe.label.tolist() == ["metastasis", "healthy"]
        and (probe.sources == "north, south").all()
        and (probe.n_patients == 2 * PATIENTS).all()
    )
    assert probe.balanced_accuracy[1] > 0.9 and probe.p_value[1] == 0.02  # healthy: nothing but noise to see


def test_reproduce_with_two_classes(joined, sources, tmp_path):
    out = tmp_path / "run"
    r = CliRunner().invoke(
        app,
        [
            "reproduce",
            "--manifest",
            str(sources / "all.csv"),
            "--preset",
            "smoke",
            "--out",
            str(out),
            "--jobs",
            "2",
            "--device",
            "cpu",
        ],
    )
    assert r.exit_code == 0, r.output
    run = read_run(out)
    assert run.results["summary"]["classes"] == list(TRAINED)
    for arm in run.results["summary"]["arms"].values():
        cm = pd.DataFrame(arm["confusion"], TRAINED, TRAINED)
        assert cm.sum(axis=1).tolist() == [2 * PATIENTS, 2 * PATIENTS] and set(arm["recall"]) == set(TRAINED)
        assert np.isclose(arm["balanced_accuracy"], (arm["recall"]["metastasis"] + arm["recall"]["healthy"]) / 2)
        assert all(arm[k] is not None for k in ("accuracy_pooled", "accuracy_std", "brier", "ece"))
    assert [c for c in run.predictions if c.startswith("p_")] == ["p_metastasis", "p_healthy"]
    assert set(run.predictions.predicted) <= set(TRAINED)
    folder = Run(out)
    assert folder.settings.classes == TRAINED
    assert all(folder.record(task)["classes"] == list(TRAINED) for task in folder.tasks)
    row = run.results["summary"]["comparisons"]["baseline"]["proposed"]
    assert row["low"] <= row["difference"] <= row["high"] and row["n_cases"] == len(load_manifest(sources / "all.csv"))
    assert not any("paper" in column for column in table2(run.results))  # which has other classes
    assert len(run.figures["samples"]) == 2 and np.isfinite(run.figures["samples"]).all()
    assert run.figures["swap_code_labels"].tolist() == [0, 1]
    assert [ax.get_ylabel() for ax in fig5(run.figures, TRAINED).axes if ax.get_ylabel()] == list(TRAINED)
    targets = json.loads((out / "weights/r0_f1_disentangle.json").read_text())["history"]
    assert all(np.isfinite(h["valid_loss"]) for h in targets)
    page = (out / "report.html").read_text()
    assert "12 metastasis, 12 healthy" in page and "0 cyst" not in page and ">nan" not in page


@pytest.fixture(scope="module")
def fold(joined):
    "A fold of the joined cohort as an arm sees it, with untrained generators"
    s = preset("smoke", classes=TRAINED)
    rois, cases = load_rois(joined, s.margin, s.roi_size), make_folds(joined.df, s.n_folds, s.valid_share, 0)
    networks = {name: made.model(s) for name, made in GENERATORS.items()} | {"baseline": classifier_network(s)}
    return ArmFold(s, 0, lambda s: dataloaders(rois, cases.label, cases.fold_1, s), networks.__getitem__)


@pytest.mark.parametrize("name", [*ARMS, *GENERATORS])
def test_outputs_follow_the_classes(fold, name):
    learn = (ARMS | GENERATORS)[name].learner(fold)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert list(learn.dls.vocab) == list(TRAINED)
    if name in ARMS:
        assert learn.get_preds()[0].shape[1] == 2
    else:
        assert learn.model.classes == TRAINED


def test_a_run_goes_on_with_its_classes(joined, tmp_path):
    start_run(tmp_path / "run", joined, preset("smoke"))
    assert start_run(tmp_path / "run", joined, preset("smoke")).settings.classes == TRAINED


@pytest.mark.parametrize("classes", [["healthy"], ["healthy", "cyst"], ["cyst", "cyst"], ["cyst", "abscess"]])
def test_classes_that_settings_refuse(classes):
    with pytest.raises(InputError, match="setting 'classes' = .*: .*give at least two of cyst, "):
        preset("smoke", classes=classes)
