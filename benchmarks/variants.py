"""What was tried beside what was kept: ways to upsample, memory layouts, number formats, compiling, freezing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverdis.method.learner import keep_memory
from liverdis.method.models import Decoder, Encoder
from liverdis.settings import Settings, preset

from .timing import in_turn, one_thread, seconds_of

Run = Callable[[], Any]
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]  # image (B,I,H,W), weights (O,I,3,3), bias (O,) to (B,O,2H,2W)
LAST, FIRST = torch.channels_last, torch.contiguous_format

# -- ways to double the size and convolve ------------------------------------------------------------------------------


def apart(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Upsample, then convolve."""
    return F.conv2d(F.interpolate(x, scale_factor=2), w, b, padding=1)


def transposed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One transposed convolution: the kernel of 4x4 that does both. What `UpConv2d` does."""
    flipped = w.transpose(0, 1).flip(2, 3)
    kernel = torch.stack([F.pad(flipped, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1)]).sum(0)
    return F.conv_transpose2d(x, kernel, b, stride=2, padding=1)


def interleaved(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Four convolutions of 2x2 at once, their results woven into each other."""
    (n, _, height, width), channels = x.shape, len(w)
    y = F.conv2d(x, kernels_of_2x2(w).flatten(0, 2), padding=1).view(n, 2, 2, channels, height + 1, width + 1)
    rows = [torch.stack([y[:, i, j, :, i : i + height, j : j + width] for j in (0, 1)], -1) for i in (0, 1)]
    return torch.stack(rows, 3).reshape(n, channels, 2 * height, 2 * width) + b[:, None, None]


def shuffled(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The same four as kernels of 3x3, woven by `pixel_shuffle`."""
    k = kernels_of_2x2(w)
    columns = [torch.stack([F.pad(k[i, j], (j, 1 - j, i, 1 - i)) for j in (0, 1)], 1) for i in (0, 1)]
    weights = torch.stack(columns, 1).flatten(0, 2)
    return F.pixel_shuffle(F.conv2d(x, weights, b.repeat_interleave(4), padding=1), 2)


def kernels_of_2x2(w: Tensor) -> Tensor:  # (2,2,O,I,2,2)
    """The four 2x2 kernels that a 3x3 kernel (O,I,3,3) becomes on the small image."""
    return torch.stack([torch.stack([_halved(_halved(w, 2, i), 3, j) for j in (0, 1)]) for i in (0, 1)])


def _halved(w, dim, shift):
    a, b, c = w.unbind(dim)
    return torch.stack([a + b, c] if shift else [a, b + c], dim)


def layers(
    way: Layer,
    layout: torch.memory_format,
    sizes: list[tuple[int, int, int]],  # channels in and out, and pixels a side, of each layer
    batch: int,
) -> Run:
    """Forward and backward through the upsampling layers of a decoder: a function that does it."""
    made = [_layer(layout, batch, *size) for size in sizes]

    def run():
        for x, w, b in made:
            torch.autograd.grad(way(x, w, b).sum(), (x, w, b))

    return run


def _layer(layout, batch, channels_in, channels_out, n):
    x = torch.randn(batch, channels_in, n, n).to(memory_format=layout)
    w = torch.randn(channels_out, channels_in, 3, 3).to(memory_format=layout)
    return x.requires_grad_(), w.requires_grad_(), torch.randn(channels_out, requires_grad=True)


# -- encoder and decoder -----------------------------------------------------------------------------------------------


def autoencoder(s: Settings) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder, in evaluation mode."""
    torch.manual_seed(0)
    return Encoder.of(s).eval(), Decoder.of(s).eval()


def training(
    s: Settings,
    batch: int,
    layout: torch.memory_format = LAST,
    wrap: Callable[[nn.Module], Callable[..., Tensor]] = lambda net: net,
) -> Run:
    """Forward and backward through encoder and decoder."""
    e, d = Encoder.of(s).to(memory_format=layout), Decoder.of(s).to(memory_format=layout)
    x, c = torch.rand(batch, 1, s.roi_size, s.roi_size), torch.rand(batch, s.code_size)
    encode, decode = wrap(e), wrap(d)

    def run():
        F.mse_loss(decode(c, encode(x)), x).backward()
        e.zero_grad()
        d.zero_grad()

    return run


def forward(
    s: Settings,
    batch: int,
    context: Callable[[], Any] = torch.no_grad,
    freeze: bool = False,  # trace the networks and make their weights constants of the graph
) -> Run:
    """Forward through encoder and decoder, without gradients."""
    e, d = autoencoder(s)
    x = torch.rand(batch, 1, s.roi_size, s.roi_size)
    with torch.no_grad():
        encode = _frozen(e, x) if freeze else e
        decode = _frozen(d, e(x), e(x)) if freeze else d

    def run():
        with context():
            r = encode(x)
            decode(r, r)

    return run


def _frozen(net, *args):
    return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, args)))


# -- the benchmark -----------------------------------------------------------------------------------------------------


def upsampling(sizes: list[tuple[int, int, int]], batch: int) -> dict[str, Run]:
    """Every way to upsample, the one that was kept first."""
    ways: dict[str, Layer] = {
        "transposed": transposed,
        "apart": apart,
        "interleaved": interleaved,
        "shuffled": shuffled,
    }
    runs = {what: layers(way, LAST, sizes, batch) for what, way in ways.items()}
    return runs | {"apart, default layout": layers(apart, FIRST, sizes, batch)}


def topics() -> dict[str, dict[str, Run]]:
    """What is compared with what; the first of each was kept."""
    demo, full = preset("demo"), preset("paper", precision="float32")
    half = preset("demo", precision="bfloat16")
    return {
        "upsampling, demo": upsampling([(128, 32, 8), (32, 16, 16), (16, 8, 32)], 32),
        "upsampling, paper, batch 4": upsampling([(1024, 256, 16), (256, 64, 32), (64, 64, 64)], 4),
        "layout, demo": {"channels last": training(demo, 32), "default": training(demo, 32, FIRST)},
        "layout, paper, batch 4": {"channels last": training(full, 4), "default": training(full, 4, FIRST)},
        "torch.compile, demo": {"eager": training(demo, 32), "compiled": training(demo, 32, wrap=torch.compile)},
        "number format, demo, forward": {"float32": forward(demo, 32), "bfloat16": forward(half, 32)},
        "frozen networks, demo, forward": {
            "as they are": forward(demo, 32),
            "traced and frozen": forward(demo, 32, freeze=True),
        },
        "no gradients, demo, forward": {
            "no_grad": forward(demo, 32),
            "inference_mode": forward(demo, 32, torch.inference_mode),
        },
    }


def bench_variants(
    rounds: int = 7,
) -> pd.DataFrame:  # topic, what, round (-1: the first call, compiling included), seconds
    """What was tried beside what was kept, in turn, one thread."""
    one_thread()
    keep_memory()
    return pd.concat([_bench_topic(topic, runs, rounds) for topic, runs in topics().items()], ignore_index=True)


def _bench_topic(topic, runs, rounds):
    first = [(-1, what, seconds_of(f)) for what, f in runs.items()]
    ways = {what: partial(seconds_of, f) for what, f in runs.items()}
    table = pd.DataFrame([*first, *in_turn(ways, rounds)], columns=["round", "what", "seconds"])
    return table.assign(topic=topic)


def variant_ratios(
    table: pd.DataFrame,  # of `bench_variants`
) -> pd.DataFrame:  # one row a variant that was not kept
    """Time relative to what was kept, in the same round: median and range."""
    measured = table[table["round"] >= 0]
    rows = [row for topic, t in measured.groupby("topic", sort=False) for row in _variant_rows(topic, t)]
    columns = ["topic", "kept", "tried", "times as long", "from", "to"]
    return pd.DataFrame(rows, columns=columns).set_index(["topic", "kept"])


def _variant_rows(topic, t):
    seconds = t.pivot(index="round", columns="what", values="seconds")
    kept, *others = t.what.unique()
    for what in others:
        ratio = seconds[what] / seconds[kept]
        yield topic, kept, what, ratio.median().round(2), ratio.min().round(2), ratio.max().round(2)
