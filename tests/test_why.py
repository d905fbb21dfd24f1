"""The arms of studies/why.py and what tools/seen_labels.py counts: knowledge from outside goes where it should."""

from pathlib import Path

import numpy as np
import pytest
import seen_labels
import torch
import torch.nn.functional as F
from batches import first_batch

from liverdis.method.arms import ARMS, GENERATORS, ArmFold, load_arms
from liverdis.method.data import dataloaders, phantom_fold
from liverdis.method.models import classifier_network
from liverdis.settings import preset
from liverdis.study.training import resumable_fit

S = preset("smoke", classifier_epochs=1)


@pytest.fixture(scope="module")
def fold():
    "Fold 1 of a small phantom, with untrained networks."
    _, rois, cases = phantom_fold(S, dict(cyst=9, metastasis=9, hemangioma=9, healthy=9))
    torch.manual_seed(0)
    networks = {
        "disentangle": GENERATORS["disentangle"].model(S).eval(),
        "oracle": classifier_network(S).eval(),
    }
    return ArmFold(S, 0, lambda s: dataloaders(rois, cases.label, cases.fold_1, s), networks.__getitem__)


@pytest.fixture
def arms(monkeypatch):
    "The arms with those of the file, for one test."
    monkeypatch.setattr("liverdis.method.arms.ARMS", known := dict(ARMS))
    load_arms(Path(__file__).parent.parent / "studies/why.py")
    return known


@pytest.mark.parametrize("name", ["proposed-seen", "duplicate-seen"])
def test_the_oracle_names_what_is_added_and_nothing_else(arms, fold, name):
    x, targets = first_batch(arms[name], fold)
    half = len(x) // 2
    with torch.no_grad():
        seen = fold.network("oracle")(x).softmax(1)
    assert half == S.batch_size
    assert torch.allclose(targets[half:], seen[half:], atol=1e-5)
    assert torch.equal(targets[:half], F.one_hot(targets[:half].argmax(1), targets.shape[1]).float())
    assert not torch.allclose(seen[:half], targets[:half], atol=0.1)


def test_the_mixtures_are_those_of_the_proposed_scheme(arms, fold):
    (x, targets), (y, shares) = (first_batch(arms[name], fold) for name in ("proposed-seen", "proposed"))
    assert torch.equal(x, y)
    assert not torch.allclose(targets, shares, atol=0.1)


@pytest.mark.parametrize("name, other", [("baseline-last", "baseline"), ("duplicate-last", "duplicate-real")])
def test_last_epoch_is_kept_after_the_same_training(arms, fold, name, other, tmp_path):
    states = []
    for arm in (name, other):
        torch.manual_seed(0)
        fit = dict(epochs=6, lr=0.03, seed=0, one_cycle=False, best=True)
        states.append(resumable_fit(arms[arm].learner(fold), folder=tmp_path / arm, **fit).state)
    losses = [[epoch["valid_loss"] for epoch in state["history"]] for state in states]
    assert losses[0] == losses[1]
    assert states[0]["kept_epoch"] == 5 != states[1]["kept_epoch"] == np.argmin(losses[1])


def test_labels_and_what_is_seen_are_averaged_by_share():
    labels = torch.tensor([[0.52, 0.48], [0.48, 0.52], [1.0, 0.0], [0.98, 0.02]])
    seen = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1], [0.7, 0.3]])
    table = seen_labels.by_share(labels, seen, ("cyst", "healthy")).set_index(["label", "named", "tenth"])
    cyst = {("cyst", True, 5): 2, ("cyst", True, 10): 2}
    healthy = {("healthy", False, 0): 1, ("healthy", True, 0): 1, ("healthy", True, 5): 2}
    assert table.n.to_dict() == cyst | healthy
    assert np.allclose(table.loc[("cyst", True, 5), ["share", "seen"]].tolist(), [0.5, 0.3])
    assert np.allclose(table.loc[("healthy", False, 0), ["share", "seen"]].tolist(), [0.0, 0.1])
    assert np.allclose(table.loc[("healthy", True, 0), ["share", "seen"]].tolist(), [0.02, 0.3])
