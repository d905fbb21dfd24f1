"""benchmarks/ measures what it says, in small: no number here is a result."""

import copy
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import ingest, memory
from benchmarks.__main__ import app
from benchmarks.ingest import bench_ingest, ingest_ratios
from benchmarks.loading import bench_loading, loading_rates
from benchmarks.memory import against_size, bench_memory
from benchmarks.search import bench_search, search_times
from benchmarks.stacked import bench_stacked, each
from benchmarks.steps import bench_steps, reference_networks, synthesis_shares, torch_step, training_ratios
from benchmarks.timing import Measured, in_fresh_process, in_turn, seconds_of
from benchmarks.variants import apart, interleaved, shuffled, transposed
from liverdis.method.disentangle import Disentangler
from liverdis.method.models import Classifier, Encoder, UpConv2d
from liverdis.settings import preset


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_this_process(monkeypatch):
    "A fresh process takes seconds to import everything; `test_a_process_of_its_own` has one"

    def measured(f, *args):
        return Measured(seconds_of(lambda: f(*args)), 100.0)

    for module in (ingest, memory):
        monkeypatch.setattr(module, "in_fresh_process", measured)


def test_ways_are_measured_in_turn():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert list(in_turn(ways, 2)) == [(0, "a", 3), (0, "b", 4), (1, "a", 5), (1, "b", 6)]
    assert calls == [*"ababab"]


def test_a_process_of_its_own():
    measured = in_fresh_process(np.ones, 2**27)
    assert 1024 < measured.peak_mb < 3000 and measured.seconds > 0
    with pytest.raises(RuntimeError, match="failed, see above"):
        in_fresh_process(np.ones, -1)


def test_plain_loop_and_ours_train_alike():
    "Five steps of phase 2 in double precision: same weights, images and dropout, so the same images afterwards"
    s = preset("demo")
    torch.manual_seed(0)
    net = Disentangler(Encoder.of(s), Classifier.of(s), s).double()
    plain = reference_networks(net)
    assert not any(isinstance(m, UpConv2d) for m in plain.modules())
    x = torch.rand(8, 1, 64, 64).double()

    def trained(net, fused):
        torch.manual_seed(1)
        step = torch_step(net.train(), s, fused)
        for _ in range(5):
            step(torch.rand(8, 1, 64, 64).double(), torch.randint(4, (8,)))
        return net.eval()(x)[0].detach()

    before = copy.deepcopy(net).eval()(x)[0].detach()
    slow, fast = trained(plain, False), trained(net, True)
    assert (fast - slow).abs().max() < 1e-4 < (slow - before).abs().max()


def test_ways_to_upsample_agree():
    x, w, b = torch.rand(2, 3, 5, 6).double(), torch.rand(4, 3, 3, 3).double(), torch.rand(4).double()
    for way in (transposed, interleaved, shuffled):
        assert torch.allclose(way(x, w, b), apart(x, w, b)), way.__name__


def test_steps():
    t = bench_steps("smoke", rounds=1, steps=2, processes=1)
    assert set(t[t.phase == 2].what) == {"plain", "networks", "liverdis"}
    assert set(t[t.phase == 3].what) > {"synthesis", "search", "decoder", "plain decoder"}
    assert set(t.phase) == {1, 2, 3}
    assert (t.seconds > 0).all() and (t.gflop > 0).all()
    assert len(training_ratios(t)) == 3 and len(synthesis_shares(t)) == 1


def test_loading():
    t = bench_loading(36, rounds=1)
    assert set(t.what) == {"plain", "in memory", "from file", "PILDicom", "MONAI"}
    assert (t.images >= 32).all()
    assert loading_rates(t).loc["in memory", "relative to memory"] == 1


def test_search():
    t = bench_search((400,), ("smoke",), rounds=1, memory=False)
    assert t.found.dropna().tolist() == [1.0] * 3  # all exact
    assert search_times(t).shape == (1, 3)


def test_stacked():
    t = bench_stacked("cpu", sizes=(1, 2), steps=1, name="smoke")
    assert list(each(t).index) == [1, 2] and (t.ms > 0).all()


def test_memory(in_this_process):
    t = bench_memory((300,), rounds=1, steps=2)
    assert (t.images_per_s > 0).all() and (t.peak_mb == 100).all()
    assert len(against_size(t)) == 1


def test_ingest(in_this_process):
    t = bench_ingest(patients=(1,), rounds=1)
    assert sorted(t.what) == ["ingest", "ingest, two processes", "pydicom", "pydicom, two processes"]
    assert (t.seconds > 0).all() and (t.files == 120).all()
    assert ingest_ratios(t).shape == (1, 12)


def test_every_command_explains_itself():
    text = CliRunner().invoke(app, ["--help"]).output
    commands = re.findall(r"^\W*(steps|loading|memory|search|stacked|ingest|variants) ", text, re.M)
    assert len(commands) == 7
    assert all(CliRunner().invoke(app, [name, "--help"]).exit_code == 0 for name in commands)
