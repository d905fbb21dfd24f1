"""`proposed` with other mixtures: an arm for each setting of phase 3 that the paper leaves open, one generator for all.

`liverdis study mixtures --arms studies/mixtures.py`
"""

from liverdis.method.arms import arm
from liverdis.method.mixture import mixture_learner

CHANGES = {
    "mixture_share_025": {"mixture_share": 0.25},
    "mixture_share_05": {"mixture_share": 0.5},
    "mixture_alpha_03": {"mixture_alpha": 0.3},
    "mixture_alpha_3": {"mixture_alpha": 3.0},
    "mixture_favour_2": {"mixture_favour": 2.0},
    "mixture_until_07": {"mixture_until": 0.7},
}


def proposed_with(name, changes):
    "Register the proposed scheme with other settings of the mixtures as an arm."

    def make(fold):
        changed = fold.changed(**changes)
        return mixture_learner(changed.dls, changed.network("disentangle"), changed.settings, changed.seed)

    make.__name__, make.__doc__ = name, "proposed, with " + ", ".join(f"{k} {v}" for k, v in changes.items())
    return arm(needs="disentangle")(make)


for name, changes in CHANGES.items():
    proposed_with(name, changes)
