"""A run as a user starts, kills, resumes and uses it, through the installed command."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from liverdis.cohort.manifest import load_manifest
from liverdis.core import InputError
from liverdis.method.arms import ARMS
from liverdis.settings import preset
from liverdis.study.experiment import _lost_workers, run_task
from liverdis.study.run import Task, start_run
from liverdis.study.studies import Study, run_study
from liverdis.use.cli import app

LIVERDIS = Path(sys.executable).with_name("liverdis")
REALDATA = Path(os.environ.get("LIVERDIS_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))


def command(out, *options):
    return [LIVERDIS, "reproduce", "--preset", "smoke", "--out", str(out), "--jobs", "2", *options]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A smoke run that nobody disturbed"
    out = tmp_path_factory.mktemp("straight") / "run"
    subprocess.run(command(out), check=True, capture_output=True)
    return out


def stop(process, how):
    "Send a signal; every worker must end with the process. Returns its exit code"
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    code = process.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "workers outlived the run"
    return code


def done(out):
    "The records of finished tasks and when they were written"
    return {p: p.stat().st_mtime_ns for p in out.glob("weights/*.json")}


@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_stopped_run_goes_on_with_the_same_numbers(straight, tmp_path, how, code):
    "Also, the same lesions given as a user's own give the same numbers, and the run does not call them the phantom"
    run = command(out := tmp_path / "run", "--manifest", str(straight / "phantom" / "manifest.csv"))
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("weights/*disentangle.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    assert stop(process, how) == code
    assert not (out / "results.json").exists()
    assert how == signal.SIGKILL or json.loads((out / "run.json").read_text())["wall_time_s"] > 0
    before = done(out)
    subprocess.run(run, check=True, capture_output=True)
    assert before.items() <= done(out).items(), "finished tasks were done again"
    assert (out / "predictions.csv").read_bytes() == (straight / "predictions.csv").read_bytes()
    results, undisturbed = (json.loads((folder / "results.json").read_text()) for folder in (out, straight))
    assert results["data"] == "own manifest" and not (out / "phantom").exists()
    assert measures(results) == measures(undisturbed)


def measures(results):
    "What the codes hold, in each fold"
    return [{k: v for k, v in fold["disentangle"].items() if k != "wall_time_s"} for fold in results["folds"]]


def test_measures_of_each_fold(straight):
    folds = measures(json.loads((straight / "results.json").read_text()))
    assert len(folds) == 3
    for fold in folds:
        shares = {"probe_r_accuracy", "probe_c_accuracy", "majority_accuracy", "swap_to_code", "swap_to_image"}
        shares |= {"swap_classifier_accuracy", "swap_classifier_rebuilt_accuracy"}
        shares |= {"probe_r_svm_accuracy", "real_or_decoded"}
        errors = {"test_mse", "test_mse_other_r", "r_sensitivity", "pca_mse", "mean_image_mse"}
        errors |= {"ssim", "spectrum_gap"}
        assert fold.keys() == shares | errors
        assert all(0 <= fold[k] <= 1 for k in shares)
        assert fold["r_sensitivity"] == fold["test_mse_other_r"] / fold["test_mse"]


def called(out, *options):
    "The command inside this process, which has imported everything"
    return CliRunner().invoke(app, list(map(str, command(out, *options)[1:])))


def refused(out, *options):
    "The one line by which the command refuses"
    r = called(out, *options)
    assert r.exit_code == 2 and len(r.stderr.strip().splitlines()) == 1, r.output
    return r.stderr


@pytest.fixture
def unfinished(straight, tmp_path):
    "A copy of the run in which fold 3 lacks its last task"
    shutil.copytree(straight, tmp_path / "run")
    for name in ("results.json", "weights/r0_f3_proposed.json"):
        (tmp_path / "run" / name).unlink()
    return tmp_path / "run"


def test_task_whose_record_was_deleted_is_done_again(straight, tmp_path):
    "As the refusal of a damaged network asks for, though the run had its results"
    shutil.copytree(straight, tmp_path / "run")
    weights = tmp_path / "run" / "weights" / "r0_f3_proposed.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    weights.with_suffix(".json").unlink()
    r = called(tmp_path / "run")
    assert r.exit_code == 0, r.output
    assert weights.read_bytes() == before and (tmp_path / "run" / "results.json").exists()


def test_results_that_are_damaged_or_gone(straight, tmp_path):
    "The refusal says what to do, and that helps"
    shutil.copytree(straight, out := tmp_path / "run")
    for path in (out / "predictions.csv", out / "figures.npz", out / "results.json"):
        before = path.read_bytes()
        path.write_bytes(before[:900])
        assert f"{path.name}: " in (said := refused(out)) and "delete it, and the same command writes it" in said
        path.write_bytes(before)
    (out / "predictions.csv").unlink()
    (out / "figures.npz").unlink()
    r = called(out)
    assert r.exit_code == 0 and (out / "figures.npz").exists(), r.output
    assert (out / "predictions.csv").read_bytes() == (straight / "predictions.csv").read_bytes()


@pytest.mark.parametrize("name", ["rois.npy", "folds.csv"])
def test_data_of_a_finished_run_that_are_gone(straight, tmp_path, name):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert f"{name}: is missing: delete the folder" in refused(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"case_id\n", b"\xff\xfe\x00"], ids=["empty", "other columns", "binary"])
def test_folds_that_are_no_table(straight, tmp_path, content):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "folds.csv").write_bytes(content)
    assert "folds.csv: cannot be read" in refused(tmp_path / "run")


def test_case_moved_from_test_to_training_is_found(straight, tmp_path):
    "Even when the run is finished and would only be shown"
    shutil.copytree(straight, tmp_path / "run")
    folds = tmp_path / "run" / "folds.csv"
    folds.write_text(folds.read_text().replace(",test", ",train", 1))
    assert "folds.csv" in refused(tmp_path / "run")


def test_changed_network_is_found(unfinished):
    "By the task that needs it, in a process of its own"
    weights = unfinished / "weights" / "r0_f3_disentangle.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert weights.name in refused(unfinished)


def test_warnings_are_stored_and_printed(straight, unfinished):
    r = called(unfinished)
    assert r.exit_code == 0, r.output
    found, before = (json.loads((p / "results.json").read_text())["folds"] for p in (unfinished, straight))
    assert [f["warnings"] for f in found] == [f["warnings"] for f in before]
    said = [text for f in found for text in f["warnings"]]
    assert any("never learned" in text for text in said)  # two epochs teach no adversary
    assert all(text in r.stdout.replace("\n", " ") for text in said) and "mean nothing" in r.stdout


def test_full_disk(straight, tmp_path):
    "One line, and nothing that looks finished"
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk takes root")
    try:
        refused(disk / "run", "--manifest", str(straight / "phantom" / "manifest.csv"))
        assert not list(disk.rglob("results.json"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_files_of_a_killed_write(unfinished):
    "They go when the run is taken up. safetensors left its own, and wrote networks that only their owner could read"
    left = unfinished / "weights" / ".r0_f3_proposed.json.x1.part"
    left.write_text("{")
    assert called(unfinished).exit_code == 0 and not left.exists()
    assert {stat.S_IMODE(f.stat().st_mode) for f in unfinished.glob("weights/*")} == {0o644}


def children(process):
    "Processes that it has started; their command lines are in `info`"
    return [p for p in psutil.process_iter(["ppid", "cmdline"]) if p.info["ppid"] == process.pid]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forks on Linux only")
def test_ctrl_c_while_workers_are_made(straight, tmp_path):
    "To every process, as a terminal sends it. A worker born after its parent's end once said that it missed its queues"
    run = command(tmp_path / "run", "--manifest", str(straight / "phantom" / "manifest.csv"))
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
    while not (makers := [p for p in children(process) if "forkserver" in str(p.info["cmdline"])]):
        assert process.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.01)
    time.sleep(0.5)  # it imports the library now
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    _, alive = psutil.wait_procs(makers, timeout=30)
    assert not alive and len((tmp_path / "said").read_text().splitlines()) == 1


def test_no_two_processes_in_one_run(straight):
    from filelock import FileLock

    with FileLock(straight / ".lock"):
        r = subprocess.run(command(straight), capture_output=True, text=True)
    assert r.returncode == 2 and "another process" in r.stderr and len(r.stderr.strip().splitlines()) == 1


def test_predict_on_real_ct(straight):
    ircad = REALDATA / "ircad17"
    if not ircad.exists():
        pytest.skip(f"no real CT in {REALDATA}")
    image, mask = ircad / "PATIENT_DICOM" / "image_97", ircad / "MASKS_DICOM" / "livertumor1" / "image_97"
    r = subprocess.run(
        [LIVERDIS, "predict", str(straight), str(image), "--annotation", str(mask)], capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr
    assert all(c in r.stdout for c in ("cyst", "metastasis", "hemangioma", "healthy")) and "synthetic" in r.stdout


def test_task_that_kills_its_workers_is_one_line():
    "Dask gives such a task up"
    scheduler = pytest.importorskip("distributed.scheduler", reason="needs Dask: pip install 'liverdis[cluster]'")
    worker = SimpleNamespace(address="tcp://127.0.0.1:1")
    with pytest.raises(InputError, match="^run_task-1: was lost with 4 workers.*tcp://127.0.0.1:1") as e:
        with _lost_workers():
            raise scheduler.KilledWorker("run_task-1", worker, 3)
    assert "\n" not in str(e.value)


SHORT = {"classifier_epochs": 1, "disentangle_epochs": 1, "n_folds": 2}
OF_GENERATORS = {
    "decoder_widths": (8, 8, 4, 4), "dropout": 0.2, "standardise": False, "lam": -0.5, "adversary_steps": 2,
    "adversary_lr": 1e-2, "disentangle_epochs": 2, "disentangle_lr": 1e-2, "disentangle_schedule": "constant",
}  # fmt: skip
OF_MIXTURES = {
    "mixture_share": 0.5, "mixture_alpha": 2.0, "mixture_others": 1, "mixture_favour": 1.0, "mixture_until": 0.5,
}  # fmt: skip


def trained(folder, cohort, kinds, **changes):
    "Checksums of the networks that some tasks make"
    arms = [kind for kind in kinds if kind in ARMS]
    run = start_run(folder, cohort, preset("smoke", **{**SHORT, **changes}), arms=[*arms, "proposed"])
    tasks = [Task(0, 1, kind) for kind in kinds]
    for task in tasks:
        run_task(run.folder, task)
    return {task.kind: run.record(task)["weights_sha256"] for task in tasks}


def test_settings_that_a_shared_task_cannot_feel(straight, tmp_path):
    "Variants of a study share these tasks: no setting of generators changes them, and no mixture the first two"
    cohort = load_manifest(straight / "phantom" / "manifest.csv")
    own = ["baseline", "swap_classifier"]
    others = [name for name, arm in ARMS.items() if not arm.needs and arm.learner.__module__ == "liverdis.method.arms"]
    before = trained(tmp_path / "before", cohort, [*own, *others[1:]])
    assert trained(tmp_path / "generators", cohort, [*own, *others[1:]], **OF_GENERATORS) == before
    assert trained(tmp_path / "both", cohort, own, **OF_GENERATORS, **OF_MIXTURES) == {k: before[k] for k in own}


def test_stopped_study_keeps_what_is_done(tmp_path):
    "And ends with the same numbers, though half of the second variant's tasks were taken over"
    study = Study("?", "smoke", settings={**SHORT, "cohort": (8, 8, 8, 8)}, sweep={"lam": [-0.5]})

    def stop(variant, done, total, running):
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "stopped", 2, stop, "cpu")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("stopped/runs/*/weights/*.json")}
    assert before and not (tmp_path / "stopped" / "results").exists()
    run_study(study, tmp_path / "stopped", 2, device="cpu")
    run_study(study, tmp_path / "straight", 1, device="cpu")
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("stopped/runs/*/weights/*.json")}
    assert before.items() <= after.items() and len(after) == 20
    assert sum('"done_by"' in p.read_text() for p in after) == 4  # baseline and swap classifier of two folds
    predictions = [tmp_path / name / "results" / "predictions.csv.gz" for name in ("stopped", "straight")]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()
