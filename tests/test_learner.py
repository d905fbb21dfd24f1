"""fastai's public Learner methods on our three Learners, beside the stock Learner with the same model and data."""

import copy
from ast import literal_eval

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler  # noqa: F401, gives a Learner fit_one_cycle, fine_tune and lr_find
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.metrics import F1Score, accuracy
from fastai.optimizer import Adam

from liverdis.core import CLASSES
from liverdis.method.arms import GENERATORS
from liverdis.method.data import TensorROI, phantom_fold, to_roi
from liverdis.method.disentangle import Adversary, Disentangler, classifier_learner, disentangle_learner
from liverdis.method.learner import Recorder, RoiLearner
from liverdis.method.mixture import MixtureLabels, mixture_learner
from liverdis.settings import preset

matplotlib.use("agg")
S = preset("smoke")
KINDS = ["classifier", "disentangle", "mixture"]
CLASSIFIERS = ["classifier", "mixture"]


class InDouble(Callback):
    "Calculates in float64, where rounding, which differs from processor to processor, cannot part two Learners."

    order = 100  # after the mixtures are made, which both make alike

    def before_batch(self):
        double = lambda batch: tuple(x.double() if torch.is_floating_point(x) else x for x in batch)
        self.learn.xb, self.learn.yb = double(self.xb), double(self.yb)

    def after_loss(self):
        self.learn.loss = self.loss.float()  # what is recorded; the gradient comes from loss_grad


@pytest.fixture(scope="module")
def fold():
    return phantom_fold(S, dict.fromkeys(CLASSES, 9))


@pytest.fixture(scope="module")
def trained(fold):
    "Models of phases 1 and 2"
    torch.manual_seed(0)
    phase1 = classifier_learner(fold[0], S)
    quietly(phase1, "fit_one_cycle", 2)
    phase2 = disentangle_learner(fold[0], phase1.model, S)
    quietly(phase2, "fit", 1)
    return phase1.model, phase2.model


@pytest.fixture
def make(fold, trained, tmp_path):
    def make(kind):
        torch.manual_seed(3)
        dls = fold[0]
        dls.path = tmp_path
        dls.train.rng.seed(3)
        learn = {
            "classifier": lambda: classifier_learner(dls, S),
            "disentangle": lambda: disentangle_learner(dls, trained[0], S),
            "mixture": lambda: mixture_learner(dls, trained[1], S, seed=4),
        }[kind]()
        learn.path = tmp_path
        return learn

    yield make
    plt.close("all")


def quietly(learn, method, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return getattr(learn, method)(*args, **kwargs)


def stock(learn):
    "fastai's own Learner and Adam around a copy of the model, with copies of the callbacks that belong to the method"
    model = copy.deepcopy(learn.model)
    other = Learner(
        learn.dls,
        model,
        copy.deepcopy(learn.loss_func),
        opt_func=Adam,
        splitter=learn.splitter,
        lr=learn.lr,
        wd=learn.wd,
        metrics=[m.func for m in learn.metrics],
        path=learn.path,
    )
    if hasattr(learn, "adversary") and isinstance(learn.adversary, Adversary):
        other.add_cb(Adversary(learn.adversary.steps, learn.adversary.adv_lr))
    if hasattr(learn, "mixture_labels"):
        mixer = learn.mixture_labels
        other.add_cb(MixtureLabels(mixer.net, mixer.bank, S, mixer.sampler.seed))
    if hasattr(learn, "in_double"):
        other.add_cb(InDouble())
    other.recorder.train_metrics = learn.recorder.train_metrics
    return other


def both(learn, method, *args, **kwargs):
    "The same call on ours and on stock, from the same state of the random generators"
    results = []
    for each in (stock(learn), learn):
        torch.manual_seed(5)
        np.random.seed(5)
        each.dls.train.rng.seed(5)
        result = quietly(each, method, *args, **kwargs)
        results.append((each, result))
    (their, expected), (_, got) = results
    return their, expected, got


def same(a, b, tolerance=2e-3):
    if isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y, tolerance)
    else:
        torch.testing.assert_close(
            torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance, check_dtype=False
        )


@pytest.mark.parametrize("kind", KINDS)
def test_validate(make, kind):
    _, expected, got = both(make(kind), "validate")
    same(list(expected), list(got), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(make, kind, fold):
    learn = make(kind)
    _, expected, got = both(learn, "get_preds", with_input=True, with_decoded=True, with_loss=True)
    same(expected, got, 1e-6)
    assert len(got) == 5
    assert got[4].shape == (learn.dls.valid.n,)  # a loss for each case
    _, expected, got = both(learn, "get_preds", ds_idx=0)
    n = (fold[2].fold_1 == "train").sum()
    assert len(got[1][0] if kind == "disentangle" else got[1]) == n  # each training case once
    with learn:
        inner = learn.get_preds(inner=True)
    same(learn.get_preds(), inner, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method, args, kwargs",
    [
        ("fit", (2,), {}),
        ("fit", (1, 1e-3), {"wd": 0.2}),
        ("fit_one_cycle", (2,), {}),
        ("fit_one_cycle", (2, 1e-3), dict(div=10.0, div_final=1e3, pct_start=0.5, wd=0.1, moms=(0.9, 0.8, 0.9))),
        ("fit_one_cycle", (2, slice(1e-4, 1e-3)), {"reset_opt": True}),
        ("fit_one_cycle", (2,), {"start_epoch": 1}),
        ("fit_flat_cos", (1, 1e-3), {}),
        ("fine_tune", (1,), {"base_lr": 1e-3}),
    ],
    ids=str,
)
def test_training(make, kind, method, args, kwargs):
    ours = make(kind)
    ours.model.double()
    ours.add_cb(InDouble())
    their, _, _ = both(ours, method, *args, **kwargs)
    same(their.recorder.lrs, ours.recorder.lrs, 1e-6)
    for name in getattr(their.recorder, "hps", {}):
        same([np.asarray(v) for v in their.recorder.hps[name]], [np.asarray(v) for v in ours.recorder.hps[name]], 1e-6)
    same([float(v) for v in their.recorder.losses], [float(v) for v in ours.recorder.losses], 1e-5)
    first_losses = [list(row[:2]) for row in their.recorder.values]
    same(first_losses, [list(row[:2]) for row in ours.recorder.values], 1e-5)
    assert all(loss.device.type == "cpu" for loss in ours.recorder.losses)
    trains = [p.requires_grad for p in their.model.parameters()]
    assert trains == [p.requires_grad for p in ours.model.parameters()]
    assert [p.requires_grad for p in their.model.parameters()].count(True) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_freeze(make, kind):
    learn = make(kind)
    before = copy.deepcopy(learn.model.state_dict())
    everything = [p.requires_grad for p in learn.model.parameters()]
    learn.freeze()
    early, late = learn.opt.param_lists
    assert not any(p.requires_grad for p in early) and all(p.requires_grad for p in late)
    quietly(learn, "fit", 1)
    names = {id(p): n for n, p in learn.model.named_parameters()}
    assert all((before[names[id(p)]] == p).all() for p in early)
    assert all((before[names[id(p)]] != p).any() for p in late)
    learn.unfreeze()
    assert [p.requires_grad for p in learn.model.parameters()] == everything


@pytest.mark.parametrize("kind", KINDS)
def test_lr_find_leaves_no_trace(make, kind):
    learn = make(kind)
    quietly(learn, "fit", 1)
    before = copy.deepcopy(learn.model.state_dict())
    adversary = copy.deepcopy(learn.adversary.state_dict()) if kind == "disentangle" else None
    with learn.no_bar():
        found = learn.lr_find(num_it=12, show_plot=True, stop_div=False)
    assert 1e-7 < found.valley < 10
    same(list(before.values()), list(learn.model.state_dict().values()), 0)
    if adversary:
        for a, b in zip(adversary["state"].values(), learn.adversary.state_dict()["state"].values()):
            same(list(a.values()), list(b.values()), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(make, kind):
    learn = make(kind)
    quietly(learn, "fit_one_cycle", 1)
    before = quietly(learn, "get_preds")[0]
    learn.save("kept")
    quietly(learn, "fit", 1, 1e-1)
    learn.load("kept")
    same(before, quietly(learn, "get_preds")[0], 0)
    quietly(learn, "fit", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:load_learner")
def test_export(make, kind, fold):
    dls, rois, _ = fold
    learn = make(kind)
    quietly(learn, "fit_one_cycle", 1)
    expected = quietly(learn, "predict", 0)
    learn.export("learner.pkl")
    loaded = load_learner(learn.path / "learner.pkl")
    got = quietly(loaded, "predict", to_roi(rois[0], S))
    same(expected[1:], got[1:], 1e-6)
    pixels = rois[0, 0, 16].tobytes()  # a row of HU
    assert pixels not in (learn.path / "learner.pkl").read_bytes()
    quietly(learn, "fit", 1)  # the exporter can go on


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_predict_a_class(make, kind, fold):
    learn = make(kind)
    _, expected, got = both(learn, "predict", 0)
    assert expected[0] == got[0] and got[0] in CLASSES
    same(expected[1:], got[1:], 1e-6)
    same(got[1:], quietly(learn, "predict", to_roi(fold[1][0], S))[1:], 1e-6)


def test_predict_an_image(make, fold):
    learn = make("disentangle")
    x = to_roi(fold[1][0], S)
    given, image, rebuilt, probabilities = quietly(learn, "predict", 0, with_input=True)
    assert isinstance(image, TensorROI) and probabilities.shape == (4,)
    same(given.as_subclass(torch.Tensor), x.as_subclass(torch.Tensor), 1e-6)
    learn.model.eval()
    with torch.no_grad():
        same(rebuilt, learn.model(x.as_subclass(torch.Tensor)[None])[0][0], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_show_results(make, kind):
    learn = make(kind)
    quietly(learn, "show_results", max_n=4)
    axes = plt.gcf().axes
    shown = [ax for ax in axes if ax.images]
    assert len(shown) == (8 if kind == "disentangle" else 4)
    titles = [ax.get_title() for ax in shown]
    if kind == "disentangle":
        assert set(titles) <= {*CLASSES, ""} and any(titles)
    else:  # true class above the predicted one
        assert all(set(t.split("\n")) <= set(CLASSES) and len(t.split("\n")) == 2 for t in titles)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classification_interpretation(make, kind):
    learn = make(kind)
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        losses, _ = interp.top_losses()
        matrix = interp.confusion_matrix()
        interp.plot_top_losses(4)
        interp.plot_confusion_matrix()
    preds, targs = quietly(learn, "get_preds")
    same(losses.sum(), torch.nn.functional.nll_loss(preds.log(), targs, reduction="sum"), 1e-4)
    assert matrix.sum() == learn.dls.valid.n


def test_interpretation_of_a_disentangler(make):
    learn = make("disentangle")
    with learn.no_bar():
        losses, idx, items = Interpretation.from_learner(learn).top_losses(4, items=True)
        learn.show_results(dl=learn.dls.test_dl(items, with_labels=True), max_n=4)
    assert len(losses) == 4 and (losses[:-1] >= losses[1:]).all()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_tta(make, kind):
    learn = make(kind)
    with learn.no_bar():
        preds, targs = learn.tta(n=2)
    assert preds.shape == (learn.dls.valid.n, 4)
    same(preds.sum(1), torch.ones(len(preds)), 1e-5)
    plain = quietly(learn, "get_preds")
    assert (targs == plain[1]).all() and (preds - plain[0]).abs().max() > 1e-6  # it did look at other views


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(make, kind):
    if not torch.cuda.is_available():
        pytest.skip("fastai's mixed precision is CUDA's autocast")
    for to, back in (("to_fp16", "to_fp32"), ("to_bf16", "to_fp32")):
        learn = getattr(make(kind), to)()
        assert any(isinstance(cb, MixedPrecision) for cb in learn.cbs)
        quietly(learn, "fit_one_cycle", 1)
        getattr(learn, back)()
        quietly(learn, "fit_one_cycle", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_come_and_go(make, kind):
    class Heard(Callback):
        def __init__(self):
            self.events = []

        def after_batch(self):
            self.events.append(self.training)

    learn = make(kind)
    first, second, direct = Heard(), Heard(), Heard()
    learn.add_cb(first)
    quietly(learn, "fit", 1, cbs=second)
    quietly(learn, "fit", 1)
    learn.remove_cb(first)
    direct.learn = learn
    learn.cbs.append(direct)  # not by add_cb
    quietly(learn, "validate")
    steps = len(learn.dls.train) + len(learn.dls.valid)
    assert [len(h.events) for h in (first, second)] == [2 * steps, steps]
    assert direct.events == [False] * len(learn.dls.valid)
    learn.cbs.remove(direct)
    learn.remove_cb(Recorder)
    quietly(learn, "fit", 1)  # fastai trains without a recorder too
    assert len(direct.events) == len(learn.dls.valid)


@pytest.mark.parametrize("kind", KINDS)
def test_logger(make, kind, capsys):
    learn = make(kind)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=CSVLogger("log.csv"))
    rows = (learn.path / "log.csv").read_text().splitlines()
    assert rows[0] == ",".join(learn.recorder.metric_names) and len(rows) == 3
    assert capsys.readouterr().out == ""
    with learn.no_bar():
        learn.fit(1)
    epoch, *values, _ = literal_eval(capsys.readouterr().out)  # printed again
    assert epoch == 0 and values == list(learn.recorder.values[-1])


def test_other_metrics(make):
    "A metric of scikit-learn's, set later, as fastai allows"
    learn = make("classifier")
    learn.metrics = [accuracy, F1Score(average="macro")]
    quietly(learn, "fit", 1)
    preds, targs = quietly(learn, "get_preds")
    loss, acc, f1 = quietly(learn, "validate")
    same(acc, (preds.argmax(1) == targs).float().mean(), 1e-6)
    assert 0 <= f1 <= 1 and np.isfinite(loss)


def test_unknown_event_is_an_error(make):
    learn = make("classifier")
    with pytest.raises(Exception, match="missing after_stepp"):
        learn("after_stepp")
    learn(["before_fit", "before_epoch"])  # a list, as fastai calls them


def test_a_copy_trains_on_its_own(make):
    learn = make("classifier")
    other = copy.deepcopy(learn.model)
    again = RoiLearner(learn.dls, other, learn.loss_func, splitter=learn.splitter, lr=1e-3)
    before = copy.deepcopy(learn.model.state_dict())
    quietly(again, "fit", 1)
    same(list(before.values()), list(learn.model.state_dict().values()), 0)


def test_constructors_leave_the_network_alone(make, trained):
    phase1 = copy.deepcopy(trained[0]).train().requires_grad_(True)
    net = Disentangler(*phase1, S).train()
    disentangle_learner(make("classifier").dls, phase1, S)
    assert all(m.training for m in phase1.modules()) and all(p.requires_grad for p in phase1.parameters())
    net.decoder.requires_grad_(True)
    modes = [m.training for m in net.modules()]
    trainable = [p.requires_grad for p in net.parameters()]
    learn = mixture_learner(make("classifier").dls, net, S)
    quietly(learn, "fit", 1)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == trainable


def test_codes_that_are_all_alike_are_decoded():
    "A collapsed encoder has no spread by which to divide"
    net = GENERATORS["disentangle"].model(S).eval()
    net.fit_scale(torch.zeros(9, S.code_size))
    assert net(torch.rand(2, 1, S.roi_size, S.roi_size))[0].isfinite().all()
    assert net.decode(torch.zeros(2, S.code_size), torch.ones(2, S.code_size)).isfinite().all()
