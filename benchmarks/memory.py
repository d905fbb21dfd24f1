"""Training from images in memory and from a file: rate and highest memory against the number of regions."""

import tempfile
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from fastai.learner import Learner

from liverdis.cohort.roi import RoiFile
from liverdis.core import CLASSES
from liverdis.method.data import dataloaders
from liverdis.method.disentangle import classifier_learner
from liverdis.method.learner import keep_memory
from liverdis.settings import preset

from .timing import EpochClock, StopAfter, in_fresh_process, in_turn, one_thread, write_noise

WAYS = {"in memory": True, "from file": False}  # and what `on_device` of `dataloaders` is for each


def phase_1_from(
    path: str,  # of regions
    n: int,  # how many it holds
    in_memory: bool,
) -> Learner:
    """A Learner of phase 1 over the regions of a file, whose loader has been started."""
    one_thread()
    keep_memory()
    s, roles = preset("demo", views=1), np.where(np.arange(n) < n - 64, "train", "valid")
    dls = dataloaders(RoiFile(path), np.resize(CLASSES, n), roles, s, on_device=in_memory)
    next(iter(dls.train))  # in memory: reads everything
    return classifier_learner(dls, s)


def training_rate(learn: Learner, steps: int) -> float:  # images a second
    """Train for some steps."""
    clock = EpochClock("cpu")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[clock, StopAfter(steps)])
    return (steps + 1) * learn.dls.bs / clock.seconds


def train_and_read(path: str, n: int, in_memory: bool, steps: int) -> None:
    """Train for some steps, then read the whole file: what peak memory is taken of."""
    learn = phase_1_from(path, n, in_memory)
    training_rate(learn, steps)
    for _ in learn.dls.train.unaugmented():
        pass


def bench_memory(
    sizes: Sequence[int] = (1000, 10_000, 100_000),  # regions
    rounds: int = 7,
    steps: int = 100,  # of phase 1 a round
) -> pd.DataFrame:  # n, what ('in memory', 'from file'), round, images_per_s, peak_mb
    """Rate of training, in turn, and highest memory, each way in a fresh process, against the number of regions."""
    return pd.concat([_bench_size(n, rounds, min(steps, n // 32 - 3)) for n in sizes], ignore_index=True)


def _bench_size(n, rounds, steps):
    with tempfile.TemporaryDirectory() as tmp:
        path = f"{tmp}/rois.npy"
        write_noise(path, n, preset("demo").roi_size)
        peaks = {what: in_fresh_process(train_and_read, path, n, flag, steps).peak_mb for what, flag in WAYS.items()}
        learners = {what: phase_1_from(path, n, flag) for what, flag in WAYS.items()}
        ways = {what: partial(training_rate, learn, steps) for what, learn in learners.items()}
        rows = [{"what": what, "round": k, "images_per_s": rate} for k, what, rate in in_turn(ways, rounds)]
    table = pd.DataFrame(rows).assign(n=n)
    return table.assign(peak_mb=table.what.map(peaks))


def against_size(
    table: pd.DataFrame,  # of `bench_memory`
) -> pd.DataFrame:  # one row a size
    """Peak memory of both ways, and the rate from the file relative to memory in the same round: median and range."""
    wide = table.pivot(index=["n", "round"], columns="what")
    ratio = (wide["images_per_s", "from file"] / wide["images_per_s", "in memory"]).groupby("n")
    peak = wide["peak_mb"].groupby("n").median().round()
    return pd.DataFrame(
        {
            "in memory, MB": peak["in memory"],
            "from file, MB": peak["from file"],
            "rate, from file / in memory": ratio.median().round(3),
            "from": ratio.min().round(3),
            "to": ratio.max().round(3),
        }
    )
