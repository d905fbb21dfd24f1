"""A training step of each phase: a plain PyTorch loop, the same loop with our networks, and our Learner, in turn."""

import copy
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import fastai.callback.schedule  # noqa: F401, gives a Learner fit_one_cycle
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Learner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from liverdis.core import CLASSES
from liverdis.method.data import RandomAffine, dataloaders
from liverdis.method.disentangle import DisentangleLoss, Disentangler, classifier_learner, disentangle_learner
from liverdis.method.learner import keep_memory
from liverdis.method.mixture import MixtureLabels, mixture_learner
from liverdis.method.models import UpConv2d
from liverdis.settings import Settings, preset

from .timing import CountWaits, EpochClock, in_turn, noise_rois, peak_gflops, seconds_of, use_threads

Net = TypeVar("Net", bound=nn.Module)
Step = Callable[[torch.Tensor, torch.Tensor], None]  # images, labels
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # images, labels to images, shares

# -- what we compare with ----------------------------------------------------------------------------------------------


def reference_networks(net: Net) -> Net:
    """A copy as one would write it: upsampling and convolution apart, PyTorch's default memory layout, float32."""
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    for module in [*net.modules()]:
        if hasattr(module, "precision"):
            module.precision = "float32"  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, UpConv2d):
                setattr(module, name, _upsampling_then_convolution(child))
    return net


def _upsampling_then_convolution(layer):
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1).to(layer.weight)
    conv.load_state_dict(layer.state_dict())
    return nn.Sequential(nn.Upsample(scale_factor=2), conv)


def torch_step(
    model: nn.Module,
    settings: Settings,
    fused: bool,  # the optimizers
    mix: Mix | None = None,  # of phase 3
) -> Step:
    """A training step of any phase in plain PyTorch, as a function of images and labels."""
    if isinstance(model, Disentangler):
        return _disentangle_step(model, settings, fused)
    return _classifier_step(model, settings, fused, mix)


def _classifier_step(model, settings, fused, mix):
    opt = _adamw([model], settings.classifier_lr, settings.weight_decay, fused)

    def step(x, y):
        if mix:
            images, w = mix(x, y)
            x, y = torch.cat([x, images]), torch.cat([F.one_hot(y, len(CLASSES)).to(w), w])
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()

    return step


def _disentangle_step(model, settings, fused):
    adversary, loss = model.adversary, DisentangleLoss(settings.lam, math.log(len(CLASSES)))
    opt = _adamw([model.unspec_encoder, model.decoder], settings.disentangle_lr, 0.0, fused)
    adversary_opt = torch.optim.Adam(adversary.parameters(), lr=settings.adversary_lr, fused=fused or None)

    def train_adversary(r, y):
        adversary.requires_grad_(True)
        for _ in range(settings.adversary_steps):
            adversary_opt.zero_grad()
            F.cross_entropy(adversary(r), y).backward()
            adversary_opt.step()

    def step(x, y):
        rebuilt, r = model(x)
        train_adversary(r.detach(), y)
        loss((rebuilt, adversary(r)), x, y).backward()
        opt.step()
        opt.zero_grad()

    return step


def _adamw(modules, lr, weight_decay, fused):
    parameters = [p for m in modules for p in m.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), eps=1e-5, fused=fused or None)


# -- one phase ---------------------------------------------------------------------------------------------------------


@dataclass
class Synthesis:
    """What phase 3 does to a batch, and the same with reference networks."""

    mixer: MixtureLabels
    plain: MixtureLabels

    def parts(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], Any]]:
        """The synthesis of a batch as a whole, and its search and decoder alone."""
        net, plain_net = self.mixer.net, self.plain.net
        for mixer in (self.mixer, self.plain):
            mixer.sampler.restart(0, 10**5)  # drawing is no part of it
        with torch.no_grad():
            c = net.spec_encoder(x)
        return {
            "synthesis": partial(mixing(self.mixer), x, y),
            "search": partial(self.mixer.bank.nearest_per_class, c, y),
            "decoder": partial(net.decode, c, c),
            "plain decoder": partial(plain_net.decode, c, c),
        }


def mixing(mixer: MixtureLabels) -> Mix:
    """What the callback of phase 3 does to a batch, as a function."""
    return mixer.mix


@dataclass
class Phase:
    """What is timed in one phase."""

    number: int
    learn: Learner
    synthesis: Synthesis | None = None  # of phase 3

    def epoch(self, callback: Callback) -> None:
        """One epoch of the Learner, watched by a callback."""
        fit = self.learn.fit if self.number == 2 else self.learn.fit_one_cycle
        with self.learn.no_bar(), self.learn.no_logging():
            fit(1, cbs=callback)

    def loops(self, settings: Settings) -> dict[str, Step]:
        """The plain loop, and the same with our networks: the Learner's own, as where weights lie in memory counts."""
        ours = self.learn.model.train()
        mix, plain_mix = None, None
        if self.synthesis:
            mix, plain_mix = mixing(self.synthesis.mixer), mixing(self.synthesis.plain)
        return {
            "plain": torch_step(reference_networks(ours), settings, False, plain_mix),
            "networks": torch_step(ours, settings, True, mix),
        }


def phases(dls: Any, settings: Settings, device: str) -> Iterator[Phase]:
    """The three phases on a device, each built on the one before."""
    classifier = classifier_learner(dls, settings)
    classifier.model.to(device)
    yield Phase(1, classifier)
    disentangler = disentangle_learner(dls, copy.deepcopy(classifier.model), settings)
    disentangler.model.to(device)
    yield Phase(2, disentangler)
    mixed = mixture_learner(dls, disentangler.model, settings)
    mixed.model.to(device)
    mixer = mixed.mixture_labels
    plain = MixtureLabels(reference_networks(disentangler.model), mixer.bank, settings)
    yield Phase(3, mixed, Synthesis(mixer, plain))


# -- the benchmark -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """How much one epoch holds."""

    name: str  # preset
    device: str
    steps: int
    batch: int


def size_of(name: str, device: str, steps: int | None, batch: int | None) -> Size:
    """35 steps, as an epoch of the paper has; 2 of 8 images for the `paper` preset on a CPU."""
    heavy = name == "paper" and device == "cpu"
    return Size(name, device, steps or (2 if heavy else 35), batch or (8 if heavy else preset(name).batch_size))


class Bench:
    """Times the ways to train an epoch, phase by phase."""

    def __init__(self, size: Size):
        self.size, n = size, size.steps * size.batch
        self.settings = preset(size.name, batch_size=size.batch, views=1)
        rois, labels = noise_rois(n + 4, self.settings.roi_size)
        roles = np.repeat(["train", "valid"], [n, 4])
        self.dls = dataloaders(rois, labels, roles, self.settings, size.device, on_device=True)
        self.images, self.labels = next(self.dls.train.unaugmented(len(rois)))
        s = self.settings
        self.augment = RandomAffine(s.max_scale, s.max_rotation, s.max_translation)

    def run(self, rounds: int) -> pd.DataFrame:
        """Every phase in turn."""
        peak = peak_gflops(self.size.device, self.settings.precision)
        tables = [self.run_phase(phase, rounds) for phase in phases(self.dls, self.settings, self.size.device)]
        about = {"peak_gflops": peak, "preset": self.size.name, "device": self.size.device, "batch": self.size.batch}
        return pd.concat(tables, ignore_index=True).assign(**about)

    def run_phase(self, phase: Phase, rounds: int) -> pd.DataFrame:
        """Loops, Learner and, in phase 3, parts of the synthesis."""
        loops = phase.loops(self.settings)
        gflop = self.flops(loops["plain"])
        ways = {what: self._timed(partial(self.epoch, phase, step)) for what, step in loops.items()}
        ways["liverdis"] = partial(self.learner_epoch, phase)
        if phase.synthesis:
            parts = phase.synthesis.parts(self.images[: self.size.batch], self.labels[: self.size.batch])
            ways |= {what: self._timed(partial(self.repeat, f)) for what, f in parts.items()}
        rows = [{"round": k, "what": w, "seconds": s / self.size.steps} for k, w, s in in_turn(ways, rounds)]
        table = pd.DataFrame(rows).assign(phase=phase.number, gflop=gflop)
        return table.assign(waits=self.waits(phase)) if self.size.device == "cuda" else table

    def learner_epoch(self, phase: Phase) -> float:  # seconds
        """The training part of an epoch of our Learner."""
        clock = EpochClock(self.size.device)
        phase.epoch(clock)
        return clock.seconds

    def waits(self, phase: Phase) -> int:
        """How often the CPU waits for the GPU in an epoch of our Learner."""
        counter = CountWaits()
        phase.epoch(counter)
        return counter.waits

    def flops(self, step: Step) -> float:  # 10⁹ operations
        """Arithmetic of a step, as PyTorch counts it."""
        with FlopCounterMode(display=False) as counter:
            step(self.images[: self.size.batch], self.labels[: self.size.batch])
        return counter.get_total_flops() / 1e9

    def epoch(self, phase: Phase, step: Step) -> None:
        """An epoch of a plain loop, on the same augmented images that the Learner sees."""
        phase.learn.model.train()
        for i in torch.randperm(len(self.images), device=self.size.device).split(self.size.batch):
            step(self.augment.transform(self.images[i]), self.labels[i])

    @torch.no_grad()
    def repeat(self, f: Callable[[], Any]) -> None:
        """As often as an epoch has steps."""
        for _ in range(self.size.steps):
            f()

    def _timed(self, f):
        return partial(seconds_of, f, self.size.device)


def bench_steps(
    name: str = "demo",  # preset
    device: str = "cpu",
    rounds: int = 5,  # in each process
    steps: int | None = None,  # of an epoch; None: see `size_of`
    batch: int | None = None,  # images; None: see `size_of`
    processes: int = 4,  # one after the other: where things lie in memory counts for some per cent
) -> pd.DataFrame:  # process, phase, round, what, seconds and gflop (a step), peak_gflops, on CUDA waits (an epoch)
    """Phases 1 to 3, in turn: plain loop, the same with our networks, our Learner; and the parts of phase 3."""
    job = size_of(name, device, steps, batch), rounds
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tables = pool.starmap(_bench_steps, [job] * processes, chunksize=1)
    return pd.concat(tables, keys=range(processes), names=["process"]).reset_index("process")


def _bench_steps(size, rounds):
    use_threads(preset(size.name).threads)
    if size.device == "cpu":
        keep_memory()  # as the processes of a run do
    return Bench(size).run(rounds)


# -- its tables --------------------------------------------------------------------------------------------------------


def training_ratios(
    table: pd.DataFrame,  # of `bench_steps`
) -> pd.DataFrame:  # one row a preset, device and phase
    """Images a second, model-FLOP utilisation, what networks and Learner give and cost: medians, with quartiles."""
    groups = table.groupby(["preset", "device", "phase"])
    rows = {key: _training_row(t) for key, t in groups}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["preset", "device", "phase"])


def _training_row(t):
    s, first = t.pivot(index=["process", "round"], columns="what", values="seconds"), t.iloc[0]
    utilisation = {what: first.gflop / s[what].median() / first.peak_gflops for what in ("liverdis", "plain")}
    return {
        "images/s": f"{first.batch / s.liverdis.median():.3g}",
        "MFU": f"{utilisation['liverdis']:.0%}",
        "MFU, plain": f"{utilisation['plain']:.0%}",
        "plain / liverdis": _quartiles(s.plain / s.liverdis),
        "plain / networks": _quartiles(s.plain / s.networks),
        "liverdis / networks": _quartiles(s.liverdis / s.networks),
    }


def _quartiles(ratio):
    low, median, high = ratio.quantile([0.25, 0.5, 0.75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def synthesis_shares(
    table: pd.DataFrame,  # of `bench_steps`
) -> pd.DataFrame:  # one row a preset and device
    """What phase 3 spends on its images: medians of ratios within a round."""
    groups = table[table.phase == 3].groupby(["preset", "device"])
    rows = {key: _synthesis_row(t) for key, t in groups}
    return pd.DataFrame.from_dict(rows, orient="index").round(3).rename_axis(["preset", "device"])


def _synthesis_row(t):
    s = t.pivot(index=["process", "round"], columns="what", values="seconds")
    ratios = {
        "synthesis / step": s.synthesis / s.liverdis,
        "synthesis / plain decoder": s.synthesis / s["plain decoder"],
        "synthesis / decoder": s.synthesis / s.decoder,
        "search / step": s.search / s.liverdis,
    }
    return {name: ratio.median() for name, ratio in ratios.items()}
