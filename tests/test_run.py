"""A run as a user starts, kills, resumes and uses it, through the installed command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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


@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_run_goes_on_with_the_same_numbers(straight, tmp_path, how, code):
    "Also, the same lesions given as a user's own give the same numbers, and the run does not call them the phantom"
    run = command(out := tmp_path / "run", "--manifest", str(straight / "phantom" / "manifest.csv"))
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("weights/*disentangle.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(timeout=30) == code
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "workers outlived the run"
    assert not (out / "results.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("weights/*.json")}
    subprocess.run(run, check=True, capture_output=True)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "finished stages were done again"
    assert (out / "predictions.csv").read_bytes() == (straight / "predictions.csv").read_bytes()
    assert json.loads((out / "results.json").read_text())["data"] == "own manifest" and not (out / "phantom").exists()


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
