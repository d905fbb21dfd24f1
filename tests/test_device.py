"""CUDA without a GPU: PyTorch's fake tensors know the device of every number but not its value, so a training step that
mixes devices or waits for a value shows itself. Backward passes need a real device and are left out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def waits():
    program = [sys.executable, "-W", "ignore", Path(__file__).with_name("fake_cuda.py")]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)


def test_no_step_waits_or_mixes_devices(waits):
    assert waits["phases"] == [[], [], []]


def test_watch_sees_what_fastai_does(waits):
    "The control: fastai's own metrics do wait"
    assert waits["fastai"]
