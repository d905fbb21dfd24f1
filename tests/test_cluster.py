"""A run on a Dask cluster of this machine: the same bytes as by processes, whatever happens to workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from liverdis.cohort.manifest import load_manifest
from liverdis.core import InputError
from liverdis.settings import preset
from liverdis.study.experiment import reproduce

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'liverdis[cluster]'")

BIN = Path(sys.executable).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@contextmanager
def dask(*arguments):
    "`dask ARGUMENTS` while the block runs"
    process = subprocess.Popen(
        [BIN / "dask", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def scheduler():
    "The address of a scheduler"
    address = f"tcp://{free_address()}"
    with dask("scheduler", "--host", address, "--no-dashboard"):
        distributed.Client(address, timeout=60).close()
        yield address


def worker(scheduler, folder, threads=1):
    "A worker that keeps its files in `folder` and is not started again when it dies"
    own = ("--no-nanny", "--no-dashboard", "--local-directory", str(folder))
    return dask("worker", scheduler, "--nthreads", str(threads), *own)


def wait_for_workers(scheduler, n):
    with distributed.Client(scheduler) as client:
        client.wait_for_workers(n, timeout=60)


def wait_until(process, condition):
    "Wait for something that a process is to bring about"
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    "A smoke run by processes of this machine"
    out = tmp_path_factory.mktemp("local") / "run"
    command = [BIN / "liverdis", "reproduce", "--preset", "smoke", "--out", str(out), "--jobs", "2"]
    subprocess.run(command, check=True, capture_output=True, env=ENV)
    return out


def test_killed_worker_costs_its_task_only(scheduler, local, tmp_path):
    """Of two workers the second joins late and the first is killed: the second does the rest, no finished task is done
    again, and the predictions are the same bytes; the folder's name is relative to where the command is given"""
    command = [BIN / "liverdis", "reproduce", "--preset", "smoke", "--out", "run", "--scheduler", scheduler]
    command += ["--manifest", str(local / "phantom" / "manifest.csv")]
    records = lambda: {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("run/weights/*.json")}
    with worker(scheduler, tmp_path) as first:
        wait_for_workers(scheduler, 1)
        run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENV)
        wait_until(run, lambda: (tmp_path / "run" / "run.json").exists())
        with worker(scheduler, tmp_path):
            wait_for_workers(scheduler, 2)
            wait_until(run, lambda: len(records()) >= 3)
            first.send_signal(signal.SIGKILL)
            first.wait(timeout=10)
            before = records()
            assert run.wait(timeout=200) == 0, run.stderr.read()
    assert len(before) < len(records()), "the worker was killed after the last task"
    assert before.items() <= records().items(), "finished tasks were done again"
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (local / "predictions.csv").read_bytes()


def refusal(local, out, scheduler):
    "The one line by which a run on a cluster is refused before anything is written"
    with pytest.raises(InputError) as e:
        reproduce(out, load_manifest(local / "phantom" / "manifest.csv"), preset("smoke"), scheduler=scheduler)
    assert not out.exists() and "\n" not in str(e.value)
    return str(e.value)


def test_workers_that_cannot_do_it(scheduler, local, tmp_path):
    "None, and one of two threads"
    assert "no worker there" in refusal(local, tmp_path / "run", scheduler)
    with worker(scheduler, tmp_path):
        wait_for_workers(scheduler, 1)
        with worker(scheduler, tmp_path, threads=2):
            wait_for_workers(scheduler, 2)
            assert "--nthreads 1" in refusal(local, tmp_path / "run", scheduler)


@pytest.mark.parametrize("address", ["", "tcp://", "nonsense://"])
def test_no_scheduler(local, tmp_path, address):
    address += free_address()
    said = refusal(local, tmp_path / "run", address)
    assert said == f"{address}: no Dask scheduler answers there: start one with `dask scheduler`"
