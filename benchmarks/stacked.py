"""Many small networks in one step: does it pay to train the folds of a study stacked, with `torch.func`?"""

import copy
import time

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from liverdis.core import CLASSES
from liverdis.method.models import classifier_network
from liverdis.settings import Settings, preset


def _network(settings: Settings) -> nn.Sequential:
    """The network of phase 1, whose BatchNorm keeps no running statistics: `vmap` cannot update them."""
    net = classifier_network(settings)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return net


def _stacked_step(settings: Settings, k: int, device: str):
    """A function that trains k networks of phase 1 for one step, each on a batch of its own."""
    nets = [_network(settings).to(device) for _ in range(k)]
    stacked, buffers = stack_module_state(nets)
    params = {name: nn.Parameter(p.detach()) for name, p in stacked.items()}
    opt = torch.optim.AdamW(params.values(), lr=1e-3, fused=True)
    skeleton = copy.deepcopy(nets[0]).to("meta")
    loss = lambda p, b, x, y: F.cross_entropy(functional_call(skeleton, (p, b), (x,)), y)
    x = torch.rand(k, settings.batch_size, 1, settings.roi_size, settings.roi_size, device=device)
    y = torch.randint(len(CLASSES), (k, settings.batch_size), device=device)

    def step() -> None:
        for name, g in vmap(grad(loss), randomness="different")(params, buffers, x, y).items():
            params[name].grad = g
        opt.step()

    return step


def _seconds(step, steps: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(max(2, steps // 5)):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - began) / steps


def bench_stacked(device: str, sizes: tuple = (1, 10, 30), steps: int = 50, name: str = "demo") -> pd.DataFrame:
    """Milliseconds of a step of phase 1 for k networks at once, without data, Learner and validation."""
    settings = preset(name)
    rows = [(k, 1000 * _seconds(_stacked_step(settings, k, device), steps, device)) for k in sizes]
    return pd.DataFrame(rows, columns=["networks", "ms"]).assign(preset=name, device=device)


def each(rounds: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of a step, and of each network in it."""
    return rounds.assign(ms_each=rounds.ms / rounds.networks).set_index("networks").round(2)
