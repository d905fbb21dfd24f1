"""Ten combinations that could represent the method at its best; `liverdis study tuning --arms studies/candidates.py`.

They ran on another phantom than the headline study, and the one with the highest mean accuracy became `proposed-plus`.
"""

from liverdis.method.arms import arm
from liverdis.method.mixture import MixtureLabels, mixture_learner
from liverdis.method.rivals import WeightAverage
from liverdis.method.sharp import GrainMixtures
from liverdis.method.variants import ResidualMixtures, SplitStatistics


def combine(fold, generator="sharp", split=False, average=False, kind=MixtureLabels, **changes):
    "The Learner of one combination; by default the generator without dropout, and the own class favoured."
    fold = fold.changed(**{"mixture_favour": 1.0, **changes})
    learn = mixture_learner(fold.dls, fold.network(generator), fold.settings, fold.seed, kind=kind)
    if split:
        mixtures = next(cb for cb in learn.cbs if isinstance(cb, MixtureLabels))
        learn.add_cb(SplitStatistics(lambda: mixtures.n_real))
    if average:
        learn.add_cb(WeightAverage())
    return learn


@arm(needs="sharp")
def plus_own(fold):
    "own class favoured"
    return combine(fold)


@arm(needs="sharp")
def plus_own_split(fold):
    "own class favoured, BatchNorm apart"
    return combine(fold, split=True)


@arm(needs="sharp")
def plus_own_average(fold):
    "own class favoured, averaged weights"
    return combine(fold, average=True)


@arm(needs="sharp")
def plus_own_split_average(fold):
    "own class favoured, BatchNorm apart, averaged weights"
    return combine(fold, split=True, average=True)


@arm(needs="disentangle")
def table1_own_split_average(fold):
    "generator of Table 1, own class favoured, BatchNorm apart, averaged weights"
    return combine(fold, "disentangle", split=True, average=True)


@arm(needs="sharp")
def plus_residual_average(fold):
    "residual mixtures, own class favoured, averaged weights"
    return combine(fold, average=True, kind=ResidualMixtures)


@arm(needs="sharp")
def plus_half_average(fold):
    "half as many, own class favoured, averaged weights"
    return combine(fold, average=True, mixture_share=0.5)


@arm(needs="sharp")
def plus_strong_average(fold):
    "own class favoured more (Dirichlet 4), averaged weights"
    return combine(fold, average=True, mixture_favour=3.0)


@arm(needs="sharp")
def plus_grain_average(fold):
    "mixtures with grain, own class favoured, averaged weights"
    return combine(fold, average=True, kind=GrainMixtures)


@arm(needs="sharp")
def plus_grain_split_average(fold):
    "mixtures with grain, own class favoured, BatchNorm apart, averaged weights"
    return combine(fold, split=True, average=True, kind=GrainMixtures)
