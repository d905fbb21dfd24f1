"""Arms that explain and are no methods: they may ask an oracle, or change one rule that all other arms share.

`liverdis study why --arms studies/why.py`, `liverdis study why-taught --arms studies/why.py`
"""

from functools import partial

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import CastToTensor

from liverdis.method.arms import arm, baseline, duplicate_real, proposed
from liverdis.method.mixture import MixtureLabels, mixture_learner
from liverdis.study.training import KeepLast


class SeenMixtures(MixtureLabels):
    "The mixtures of the proposed scheme, with what the oracle sees in them as targets."

    def __init__(self, oracle, *args):
        super().__init__(*args)
        self.oracle = oracle

    @torch.no_grad()
    def mix(self, x, y, w=None):
        "Images as before, and the oracle's probabilities."
        images, _ = super().mix(x, y, w)
        return images, self.oracle(images).softmax(1)


class SeenViews(Callback):
    "The second half of each training batch gets what the oracle sees in it as targets."

    run_valid, order = False, CastToTensor.order + 1

    def __init__(self, oracle):
        self.oracle = oracle

    @torch.no_grad()
    def before_batch(self):
        "Let the oracle name the second half."
        targets, half = F.one_hot(self.y, self.dls.c).to(self.x.dtype), len(self.x) // 2
        targets[half:] = self.oracle(self.x[half:]).softmax(1)
        self.learn.yb = (targets,)


@arm(needs="disentangle")
def proposed_seen(fold):
    "proposed, with what the oracle sees in each mixture as its target"
    kind = partial(SeenMixtures, fold.network("oracle"))
    return mixture_learner(fold.dls, fold.network("disentangle"), fold.settings, fold.seed, kind=kind)


@arm
def duplicate_seen(fold):
    "duplicate-real, with what the oracle sees in each extra view as its target"
    return duplicate_real(fold).add_cb(SeenViews(fold.network("oracle")))


@arm
def baseline_last(fold):
    "baseline, last epoch kept"
    return baseline(fold).add_cb(KeepLast())


@arm
def duplicate_last(fold):
    "duplicate-real, last epoch kept"
    return duplicate_real(fold).add_cb(KeepLast())


@arm(needs="disentangle")
def proposed_last(fold):
    "proposed, last epoch kept; the generator starts from the encoder of the best one"
    return proposed(fold).add_cb(KeepLast())


@arm(needs="disentangle")
def proposed_seen_last(fold):
    "proposed-seen, last epoch kept"
    return proposed_seen(fold).add_cb(KeepLast())


@arm
def duplicate_seen_last(fold):
    "duplicate-seen, last epoch kept"
    return duplicate_seen(fold).add_cb(KeepLast())


@arm(needs="disentangle")
def proposed_taught(fold):
    "proposed, with what the fold's own baseline sees in each mixture as its target"
    kind = partial(SeenMixtures, fold.network("baseline"))
    return mixture_learner(fold.dls, fold.network("disentangle"), fold.settings, fold.seed, kind=kind)


@arm(needs="baseline")
def duplicate_taught(fold):
    "duplicate-real, with what the fold's own baseline sees in each extra view as its target"
    return duplicate_real(fold).add_cb(SeenViews(fold.network("baseline")))
