"""The nearest code of each class for a batch of 32, against the size of the bank."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from liverdis.core import CLASSES
from liverdis.method.data import RandomAffine, load_split
from liverdis.method.mixture import CodeBank
from liverdis.settings import preset
from liverdis.study.run import Run, Task

from .timing import in_fresh_process, in_turn, one_thread, seconds_of

BATCH = 32
LARGE = 10**5  # codes from which on a tree and cells pay, and up to which trained codes are made
Search = Callable[[], torch.Tensor]  # (32,K,D)


class Codes(NamedTuple):
    """A bank and a batch of queries."""

    codes: torch.Tensor  # (N,D)
    labels: torch.Tensor  # (N,)
    c: torch.Tensor  # (32,D) queries
    y: torch.Tensor  # (32,) their classes


def noise_codes(n: int, d: int) -> Codes:
    """Codes without any structure: the hardest case for cells, and a tree would visit every leaf."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randn(n, d, generator=g).relu_()
    queries = torch.randn(BATCH, d, generator=g).relu_()
    return Codes(codes, torch.arange(n) % len(CLASSES), queries, torch.arange(BATCH) % len(CLASSES))


@torch.no_grad()
def trained_codes(n: int, run: Run) -> Codes:
    """Codes that the encoder of a run's first fold gives to ever new views of its training cases."""
    s, cases = run.settings, run.cases(0)
    images, labels = load_split(run.rois(), cases.label, cases.fold_1 == "train", s)
    encoder = next(run.network(Task(0, 1, "baseline")).children())
    augment = RandomAffine(s.max_scale, s.max_rotation, s.max_translation)
    times = math.ceil((n + BATCH) / len(images))
    torch.manual_seed(0)
    codes = torch.cat([encoder(augment.transform(images)) for _ in range(times)])
    labels = labels.repeat(times)
    return Codes(codes[:n], labels[:n], codes[-BATCH:], labels[-BATCH:])


# -- ways to search ----------------------------------------------------------------------------------------------------


def blocks(bank: Codes) -> Search:
    """Our `CodeBank`, exact."""
    ours = CodeBank(bank.codes, bank.labels, len(CLASSES))
    return lambda: ours.nearest_per_class(bank.c, bank.y)


def distances(bank: Codes) -> Search:
    """All distances at once."""
    by_class = codes_by_class(bank)
    return lambda: _with_own(torch.stack([k[torch.cdist(bank.c, k).argmin(1)] for k in by_class], 1), bank)


def faiss_exact(bank: Codes) -> Search:
    """The library's `IndexFlatL2`."""
    return _with_index(bank, _flat)


def faiss_cells(bank: Codes) -> Search:
    """The library's `IndexIVFFlat`: 1024 cells, 16 of them searched."""
    return _with_index(bank, _cells)


def tree(bank: Codes) -> Search:
    """SciPy's k-d tree."""
    return _with_index(bank, _tree)


def codes_by_class(bank: Codes) -> list[torch.Tensor]:
    """The bank, one tensor a class."""
    return [bank.codes[bank.labels == k] for k in range(len(CLASSES))]


def _with_own(found, bank):
    found[torch.arange(len(bank.y)), bank.y] = bank.c
    return found


def _with_index(bank, make):
    by_class = codes_by_class(bank)
    indices = [make(k.numpy()) for k in by_class]

    def search():
        places = [nearest(bank.c.numpy()) for nearest in indices]
        return _with_own(torch.stack([k[torch.from_numpy(i)] for k, i in zip(by_class, places)], 1), bank)

    return search


def _flat(codes):
    import faiss

    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes)
    return lambda queries: index.search(queries, 1)[1][:, 0]


def _cells(codes):
    import faiss

    d = codes.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, 1024)
    index.cp.min_points_per_centroid = 1  # says nothing where a cell gets few
    index.train(codes[:60_000])
    index.add(codes)
    index.nprobe = 16
    return lambda queries: index.search(queries, 1)[1][:, 0]


def _tree(codes):
    made = cKDTree(codes)
    return lambda queries: made.query(queries)[1]


WAYS: dict[str, Callable[[Codes], Search]] = {
    "blocks": blocks,
    "distances": distances,
    "faiss, exact": faiss_exact,
    "faiss, cells": faiss_cells,
    "k-d tree": tree,
}


def worth_trying(kind: str, n: int) -> list[str]:
    """Ways that are measured: cells and tree from `LARGE` codes on, the tree on codes that have structure."""
    return [
        what
        for what in WAYS
        if not (what in ("faiss, cells", "k-d tree") and n < LARGE) and (what, kind) != ("k-d tree", "noise")
    ]


# -- the benchmark -----------------------------------------------------------------------------------------------------


class Bank(NamedTuple):
    """Which codes are searched."""

    kind: str  # 'noise' or 'trained'
    preset: str  # for the length of a code
    n: int
    run: Run | None = None  # whose codes they are, of trained ones

    def codes(self) -> Codes:
        """Make them."""
        return trained_codes(self.n, self.run) if self.run else noise_codes(self.n, preset(self.preset).code_size)


def banks(sizes: Sequence[int], names: Sequence[str], run: str | Path | None) -> Iterator[Bank]:
    """Noise of every length and size, then the codes of a run up to `LARGE`."""
    for name in names:
        for n in sizes:
            yield Bank("noise", name, n)
    if run:
        for n in sizes:
            if n <= LARGE:
                yield Bank("trained", Run(run).info["preset"], n, Run(run))


def search_once(n: int, d: int, what: str) -> None:
    """Make an index and search it: what peak memory is taken of."""
    one_thread()
    WAYS[what](noise_codes(n, d))()


def bench_search(
    sizes: Sequence[int] = (100, 1000, 10_000, 100_000, 1_000_000),  # codes
    names: Sequence[str] = ("demo", "paper"),  # presets, for the length of a code
    rounds: int = 5,
    memory: bool = True,  # measure peak_mb at the largest size, in fresh processes
    run: str | Path | None = None,  # folder of a finished run, whose codes are searched too
) -> pd.DataFrame:  # codes, preset, n, round, what, seconds (a batch), found (share of true neighbours), peak_mb
    """Search for neighbours against the size of the bank, in turn."""
    one_thread()
    tables = [_bench_bank(b, rounds, memory and b.n == max(sizes)) for b in banks(sizes, names, run)]
    return pd.concat(tables, ignore_index=True)


def _bench_bank(bank: Bank, rounds: int, memory: bool) -> pd.DataFrame:
    codes, names = bank.codes(), worth_trying(bank.kind, bank.n)
    searches = {what: WAYS[what](codes) for what in names}
    true = searches["distances"]()
    found = {what: (f() == true).all(2).float().mean().item() for what, f in searches.items()}
    ways = {what: partial(seconds_of, f) for what, f in searches.items()}
    table = pd.DataFrame(in_turn(ways, rounds), columns=["round", "what", "seconds"])
    first = table["round"] == 0
    table = table.assign(found=table.what.map(found).where(first), peak_mb=np.nan)
    if memory and bank.kind == "noise":
        peaks = {what: in_fresh_process(search_once, bank.n, codes.codes.shape[1], what).peak_mb for what in names}
        table["peak_mb"] = table.what.map(peaks)
    return table.assign(codes=bank.kind, preset=bank.preset, n=bank.n)


def search_times(
    table: pd.DataFrame,  # of `bench_search`
) -> pd.DataFrame:  # one row a kind of codes, preset and size, one column a way
    """Milliseconds a batch of 32, medians."""
    ms = 1000 * table.groupby(["codes", "preset", "n", "what"]).seconds.median().unstack()
    return ms.map(_three_digits)


def _three_digits(value: Any) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"
