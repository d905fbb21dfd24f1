"""What all benchmarks share: clocks, memory of a process of its own, ways measured in turn, regions of noise."""

import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback, CancelTrainException
from joblib.externals.loky import get_reusable_executor

from liverdis.cohort.roi import stream_rois
from liverdis.core import CLASSES

# -- time --------------------------------------------------------------------------------------------------------------


def wait_for(device: str) -> None:
    """Let a device finish what it was given."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def seconds_of(
    f: Callable[[], Any],
    device: str = "cpu",
) -> float:
    """Time of one call, from an idle device to an idle device."""
    wait_for(device)
    began = time.perf_counter()
    f()
    wait_for(device)
    return time.perf_counter() - began


def in_turn(
    ways: Mapping[str, Callable[[], float]],  # each measures itself once and returns the number
    rounds: int,
) -> Iterator[tuple[int, str, float]]:  # round, way, number
    """Measure every way once a round, so that what disturbs one disturbs all. One more round before warms up."""
    for measure in ways.values():
        measure()
    for k in range(rounds):
        for what, measure in ways.items():
            yield k, what, measure()


def one_thread() -> None:
    """One thread for PyTorch, and for faiss if it is there."""
    torch.set_num_threads(1)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)


def peak_gflops(
    device: str,
    precision: str,  # as in `Settings`
) -> float:  # 10⁹ operations a second
    """Arithmetic of a large matrix product on the device: the best of six."""
    half = device == "cuda" and precision != "float32"
    n, dtype = (8192, torch.bfloat16) if half else (2048, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    return max(2 * n**3 / seconds_of(lambda: a @ a, device) / 1e9 for _ in range(6))


# -- a process of its own ----------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What a call took."""

    seconds: float
    peak_mb: float  # the highest resident memory of one of its processes


def in_fresh_process(
    f: Callable[..., Any],  # of a module, so that the process can import it
    *args: Any,
) -> Measured:
    """Measure a call in a process of its own, after imports. Raises RuntimeError if it fails."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(theirs, f, args))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{f.__name__}{args} failed, see above") from None
    finally:
        child.join()


def _measure(pipe, f, args):
    began = time.perf_counter()
    f(*args)
    seconds = time.perf_counter() - began
    get_reusable_executor().shutdown()  # joblib's workers end, and so are counted among the children
    pipe.send(Measured(seconds, max(_own_peak_mb(), _peak_mb(resource.RUSAGE_CHILDREN))))


def _peak_mb(who):
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(who).ru_maxrss / unit


def _own_peak_mb():
    status = Path("/proc/self/status")  # Linux counts the parent's memory in ru_maxrss of a child; here it does not
    if not status.exists():
        return _peak_mb(resource.RUSAGE_SELF)
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    assert found
    return int(found[1]) / 2**10


def use_threads(n: int | None) -> None:
    """As many threads as a run would use; None for all."""
    torch.set_num_threads(n or os.cpu_count() or 1)


# -- epochs of a Learner -----------------------------------------------------------------------------------------------


class EpochClock(Callback):
    """Times the training part of an epoch."""

    order = -100

    def __init__(self, device: str):
        self.device, self.seconds = device, float("nan")

    def before_train(self):
        """Start."""
        wait_for(self.device)
        self.began = time.perf_counter()

    def after_train(self):
        """Stop."""
        wait_for(self.device)
        self.seconds = time.perf_counter() - self.began


class CountWaits(Callback):
    """Counts how often the CPU waits for the GPU in the training part of an epoch."""

    order = -100

    def before_train(self):
        """PyTorch warns of each wait from here on."""
        self.recording = warnings.catch_warnings(record=True)
        self.caught = self.recording.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def after_train(self):
        """Count the warnings."""
        torch.cuda.set_sync_debug_mode("default")
        self.recording.__exit__(None, None, None)
        self.waits = sum("synchroniz" in str(w.message) for w in self.caught)


class StopAfter(Callback):
    """Ends the training part of an epoch after some steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def after_batch(self):
        """Stop if that was the last."""
        if self.training and self.iter == self.steps:
            raise CancelTrainException


# -- regions of noise --------------------------------------------------------------------------------------------------


def noise_rois(
    n: int,
    size: int,  # pixels
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # HU (n,1,size,size), labels (n,)
    """Regions of noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(75, 60, (n, 1, size, size)).astype(np.float32), np.resize(CLASSES, n)


def write_noise(
    path: str,
    n: int,
    size: int,  # pixels
    seed: int = 0,
    block: int = 1000,  # regions in memory at a time
) -> None:
    """Regions of noise as the file that `RoiFile` reads."""
    rng = np.random.default_rng(seed)
    lengths = (min(block, n - i) for i in range(0, n, block))
    stream_rois(path, n, size, (rng.normal(75, 60, (k, 1, size, size)).astype(np.float32) for k in lengths))
