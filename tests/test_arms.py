"""What every arm promises: a fit that was stopped leaves the Learner usable."""

import copy

import pytest
import torch
from fastai.callback.core import Callback

from liverdis.core import CLASSES
from liverdis.method.arms import ARMS, GENERATORS, ArmFold
from liverdis.method.data import dataloaders, phantom_fold
from liverdis.settings import preset
from liverdis.study.training import Checkpoint, seed_all

S = preset("smoke")


@pytest.fixture(scope="module")
def fold():
    "An `ArmFold` made anew, whose generators are not trained"
    _, rois, cases = phantom_fold(S, dict.fromkeys(CLASSES, 9))
    seed_all(0)
    networks = {name: g.model(g.settings(S)).eval() for name, g in GENERATORS.items()}
    make = lambda s: dataloaders(rois, cases.label, cases.fold_1, s)
    return lambda: ArmFold(S, 0, make, lambda name: copy.deepcopy(networks[name]))


class Stop(Callback):
    "Ctrl-C, at the first `event` of the second epoch"

    order = Checkpoint.order + 1

    def __init__(self, event):
        setattr(self, event, self.stop)

    def stop(self):
        if self.training and self.epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("arm", ARMS)
def test_stopped_learner_can_be_used(arm, fold):
    "It predicts, fits again, and keeps no hook"
    seed_all(5)
    learn = ARMS[arm].learner(fold())
    x = torch.rand(5, 1, S.roi_size, S.roi_size)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt):
            learn.fit(2, S.classifier_lr, cbs=Stop("before_batch"))
        assert learn.model.eval()(x).shape == (5, len(CLASSES))
        learn.fit(1, S.classifier_lr)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
