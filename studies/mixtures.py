"""`proposed` with other mixtures: an arm for each setting of phase 3 that the paper leaves open, one generator for all.

`liverdis study mixtures --arms studies/mixtures.py`
"""

from liverdis.method.arms import arm
from liverdis.method.mixture import mixture_learner


def proposed(fold, **changes):
    "The proposed scheme with other settings of the mixtures."
    fold = fold.changed(**changes)
    return mixture_learner(fold.dls, fold.network("disentangle"), fold.settings, fold.seed)


@arm(needs="disentangle")
def mixture_share_025(fold):
    "a quarter as many synthetic images as real ones"
    return proposed(fold, mixture_share=0.25)


@arm(needs="disentangle")
def mixture_share_05(fold):
    "half as many synthetic images as real ones"
    return proposed(fold, mixture_share=0.5)


@arm(needs="disentangle")
def mixture_alpha_03(fold):
    "proportions nearer to a single class (Dirichlet 0.3)"
    return proposed(fold, mixture_alpha=0.3)


@arm(needs="disentangle")
def mixture_alpha_3(fold):
    "proportions nearer to a quarter each (Dirichlet 3)"
    return proposed(fold, mixture_alpha=3.0)


@arm(needs="disentangle")
def mixture_others_1(fold):
    "one other class in a mixture, the nearest"
    return proposed(fold, mixture_others=1)


@arm(needs="disentangle")
def mixture_favour_2(fold):
    "the own class favoured (Dirichlet 3 for it)"
    return proposed(fold, mixture_favour=2.0)


@arm(needs="disentangle")
def mixture_until_07(fold):
    "synthetic images in the first 70 % of the training only"
    return proposed(fold, mixture_until=0.7)
