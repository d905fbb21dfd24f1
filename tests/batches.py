"""What an arm trains on, as it comes to the network."""

import random

import torch.nn.functional as F
from fastai.callback.core import Callback

from liverdis.study.training import seed_all


class Watch(Callback):
    "Keeps the first training batch that reaches the network, labels as probabilities."

    order, run_valid, batch = 1000, False, None

    def before_batch(self):
        if self.batch is None:
            y = self.yb[0]
            self.batch = self.xb[0].clone(), F.one_hot(y, self.dls.c).float() if y.ndim == 1 else y.clone()


def first_batch(arm, fold):
    learn = arm.learner(fold)
    learn.add_cb(watch := Watch())
    seed_all(0)
    learn.dls.train.rng = random.Random(0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    return watch.batch
