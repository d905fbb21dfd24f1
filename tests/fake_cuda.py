"""Fits on fake CUDA tensors; prints as JSON what made the CPU wait in them.

A program of its own, since PyTorch 2.15 can crash when it frees fake tensors of a copied network, at any later garbage
collection. So nothing is collected here, and the process ends without freeing anything."""

import gc
import json
import os

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import AvgMetric
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from liverdis.method import disentangle, learner, mixture
from liverdis.method.data import RandomAffine
from liverdis.settings import preset

S = preset("smoke", precision="auto")


class Batches:
    "What the Learners ask of a `BatchDL`, on the fake device"

    device, n, n_inp, c = torch.device("cuda"), 32, 1, len(S.classes)
    augment = RandomAffine(S.max_scale, S.max_rotation, S.max_translation)

    def __init__(self):
        self.images, self.labels = torch.rand(self.n, 1, S.roi_size, S.roi_size), torch.randint(4, (self.n,))

    def __iter__(self):
        return (
            (self.augment.transform(self.images[i]), self.labels[i]) for i in torch.randperm(self.n).split(S.batch_size)
        )

    def __len__(self):
        return self.n // S.batch_size

    def unaugmented(self):
        yield self.images, self.labels

    def to(self, device):
        return self


class Watch(TorchDispatchMode):
    "Notes what makes the CPU wait: copies between devices, and values that Python asks for"

    def __init__(self):
        super().__init__()
        self.inside, self.waits = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        transform = func is torch.ops.aten._to_copy.default and args[0].device != out.device
        if self.inside and (transform or func is torch.ops.aten._local_scalar_dense.default):
            self.waits.append(str(func))
        return out


class Training(Callback):
    order = -100

    def __init__(self, watch):
        self.watch = watch

    def before_train(self):
        self.watch.inside = True

    def after_train(self):
        self.watch.inside = False


def few_codes(self, codes, labels, n_classes):
    self.by_class, self.block = [codes[:8]] * n_classes, 3
    self.half_sq_norms = [c.square().sum(1) / 2 for c in self.by_class]


def mean_equal(p, y):
    "fastai's `accuracy` makes subclasses, which cannot be fake"
    return (p.argmax(-1) == y).float().mean()


def replace_what_needs_values():
    torch.nn.Module.to = lambda self, *a, **k: self  # everything is made on the fake device
    disentangle.accuracy = mean_equal
    disentangle.chance_entropy = lambda y: 1.3  # needs values, once
    mixture.CodeBank.__init__ = few_codes  # the number of codes of a class is a value


def fit(learn):
    "One epoch; what its steps waited for"

    def backward(self, **kwargs):
        for p in learn.model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None

    torch.Tensor.backward = backward
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, ProgressCallback)])
    for event in ("after_train", "after_validate", "after_epoch"):  # here the epoch's numbers are fetched
        setattr(learn.recorder, event, lambda: None)
    learn.recorder.log = [0]
    with Watch() as watch:
        learn.fit(1, cbs=Training(watch))
    return watch.waits


def our_phases(dls):
    phase1 = disentangle.classifier_learner(dls, S)
    yield fit(phase1)
    phase2 = disentangle.disentangle_learner(dls, phase1.model, S)
    yield fit(phase2)
    yield fit(mixture.mixture_learner(dls, phase2.model, S))


def metrics_of_fastai(dls):
    "fastai's own way of recording copies a number after each batch"
    learner._AvgMetric.accumulate = AvgMetric.accumulate
    learn = disentangle.classifier_learner(dls, S)
    learn.recorder.train_metrics = True
    learn.metrics = [mean_equal]
    return fit(learn)


if __name__ == "__main__":
    gc.disable()
    replace_what_needs_values()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        dls = DataLoaders(Batches(), Batches(), device=torch.device("cuda"))
        print(json.dumps({"phases": [*our_phases(dls)], "fastai": metrics_of_fastai(dls)}), flush=True)
    os._exit(0)
