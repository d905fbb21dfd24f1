"""What the published numbers stand on, each on made-up data whose answer is known."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from batches import first_batch
from fastai.callback.core import Callback
from PIL import Image
from scipy.stats import binomtest
from torch import nn

from liverdis.cohort.ct import volume_headers, write_slice
from liverdis.core import CLASSES
from liverdis.method.arms import ARMS, GENERATORS, ArmFold
from liverdis.method.data import RandomAffine, dataloaders, load_split, phantom_fold, to_roi
from liverdis.method.disentangle import (
    chance_entropy,
    classifier_learner,
    disentangle_learner,
    encode,
    mean_and_spread,
)
from liverdis.method.mixture import CodeBank, MixtureLabels, ProportionSampler, SyntheticImages
from liverdis.method.vae import ConditionalVAE
from liverdis.method.variants import (
    AgreeingMixtures,
    RandomMixtures,
    ResidualMixtures,
    SplitStatistics,
    extrapolated_codes,
    mixed_codes,
)
from liverdis.settings import preset
from liverdis.study import experiment
from liverdis.study.codes import majority_accuracy, mean_ssim, pca_mse, real_or_decoded
from liverdis.study.comparison import (
    BETTER,
    NOT_SHOWN,
    WORSE,
    _table,
    by_repeat,
    corrected_t,
    difference,
    fold_differences,
)
from liverdis.study.evaluate import PREDICTION_COLUMNS, calibration, confusion, draw_confusion
from liverdis.study.experiment import _bank_swaps, _Codes, _Images, _leakage, _measure, _prediction_rows, _swaps
from liverdis.study.guards import adversary_warnings, balance_warnings
from liverdis.study.run import Task, task_graph
from liverdis.study.training import resumable_fit, seed_all
from liverdis.use import predict
from liverdis.use.predict import (
    Explanation,
    Neighbours,
    Prediction,
    _nearest,
    as_json,
    classify,
    explain,
    notice,
)

S = preset("smoke")
TWO = preset("smoke", classes=("metastasis", "healthy"))
K = len(CLASSES)


@pytest.fixture(scope="module")
def parts():
    "Of a fold of a small phantom: DataLoaders of any settings, regions and cases"
    _, rois, cases = phantom_fold(S, dict.fromkeys(CLASSES, 9))
    return lambda s: dataloaders(rois, cases.label, cases.fold_1, s), rois, cases


@pytest.fixture
def fold(parts):
    "An `ArmFold` with generators that are not trained; `asked` are the names that an arm has asked for"
    seed_all(0)
    networks, asked = {name: g.model(g.settings(S)).eval() for name, g in GENERATORS.items()}, []
    networks["baseline"] = ARMS["baseline"].model(S).eval()

    def network(name):
        asked.append(name)
        return copy.deepcopy(networks[name])

    made = ArmFold(S, 7, parts[0], network)
    made.asked = asked
    return made


# -- statistics --------------------------------------------------------------------------------------------------------


def predictions(rows):
    "A table of (repeat, fold, arm, case, label, predicted), all as sure as can be"
    sure = lambda label: [float(c == label) for c in CLASSES]
    rows = [(r, f, a, c, c, label, p, *sure(p)) for r, f, a, c, label, p in rows]
    return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))


def test_repeats_are_no_further_folds():
    "The correction is for the folds of one cross-validation, however often it is repeated"
    rng = np.random.default_rng(0)
    rows = []
    for repeat in range(5):
        for i, fold in enumerate(rng.permutation(np.arange(60) % 3) + 1):
            for arm, right in (("baseline", 0.6), ("proposed", 0.75)):
                rows.append((repeat, fold, arm, f"p{i:02d}", "cyst", CLASSES[int(rng.random() > right)]))
    df = predictions(rows)
    row, d = difference(df, "proposed", "baseline"), fold_differences(df, "proposed", "baseline")
    assert len(d) == 15
    half = 2.1447867 * d.std() * np.sqrt(1 / 15 + 1 / 2)  # t of 14 degrees of freedom
    np.testing.assert_allclose((row["low"], row["high"]), (d.mean() - half, d.mean() + half), rtol=1e-6)
    np.testing.assert_allclose((row["low"], row["high"]), corrected_t(d, 3).interval(0.95), rtol=1e-9)


def test_calibration_error_weighs_its_bins():
    df = predictions([(0, 1, "baseline", f"p{i}", "cyst", "cyst") for i in range(10)])
    p = [*PREDICTION_COLUMNS[-4:]]
    df[p] = [[0.95, 0.05, 0, 0]] * 9 + [[0.55, 0.45, 0, 0]]
    df.loc[9, "label"] = "healthy"
    assert calibration(df, "baseline")["ece"] == pytest.approx(0.9 * 0.05 + 0.1 * 0.55)


def test_confusion_figure_says_which_way_to_read_it():
    "Two cysts taken for metastases and one for a cyst: the row of cysts sums to one in colour"
    rows = [(0, 1, "baseline", f"c{i}", "cyst", p) for i, p in enumerate(("metastasis", "metastasis", "cyst"))]
    rows += [(0, 1, "baseline", f"m{i}", label, label) for i, label in enumerate(CLASSES[1:])]
    ax = draw_confusion(confusion(predictions(rows), "baseline"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "ground truth")
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_array()).reshape(K, K).sum(axis=1), 1)


def test_a_verdict_needs_holm_and_the_patients():
    "Four arms with p = 0.03 show nothing, one does; nor does one whose interval over patients holds zero"
    row = dict(p_corrected=0.03, difference=0.05, low=0.01, p_equal=0.0, patients_low=0.02, patients_high=0.08)
    row |= dict(n_patients=50)
    table = lambda **rows: _table(rows, pd.Series(0.8, list(rows)))
    four = table(a=row, b=row, c=row, d=row)
    assert four.p_holm.tolist() == [0.12] * 4 and set(four.verdict) == {NOT_SHOWN}
    assert table(a=row).verdict["a"] == BETTER
    assert table(a={**row, "patients_low": -0.01}).verdict["a"] == NOT_SHOWN
    worse = {**row, "difference": -0.05, "low": -0.09, "high": -0.01, "patients_low": -0.08, "patients_high": -0.02}
    assert table(a=worse).verdict["a"] == WORSE
    assert table(a={**worse, "patients_high": 0.01}).verdict["a"] == NOT_SHOWN


def test_p_values_count_patients():
    "Ten patients differ, eight of them in favour, whatever the number of their cases"
    rows = []
    for p in range(24):
        for i in range(4):
            right = {"baseline": not p < 8, "proposed": not 8 <= p < 10}
            rows += [(0, 1 + p % 3, arm, f"{p:02d}-{i}", "cyst", "cyst" if right[arm] else "healthy") for arm in right]
    df = predictions(rows)
    df["patient_id"] = df.case_id.str[:2]
    expected = pytest.approx(binomtest(8, 10).pvalue)
    assert difference(df, "proposed", "baseline")["p_patients"] == expected
    assert by_repeat(df, "proposed", "baseline").p_value[0] == expected


# -- what is measured of the codes -------------------------------------------------------------------------------------

Y = torch.arange(K).repeat_interleave(6)
ONE_HOT = F.one_hot(Y, K).float()


def fake(decode):
    "A generator whose images are codes, and the judge that takes an image for its class"
    return SimpleNamespace(decode=decode), lambda images: images


def test_a_swap_is_seen_as_the_class_of_c_if_that_is_what_is_decoded():
    codes = _Codes(ONE_HOT, ONE_HOT, Y)
    for decode, to_code in ((lambda c, r: c, 1), (lambda c, r: r, 0)):
        found = _swaps(*fake(decode), _Images(ONE_HOT, ONE_HOT), codes, 0, "swap", "judge")
        assert (found["swap_to_code"], found["swap_to_image"]) == (to_code, 1 - to_code)
        assert _bank_swaps(*fake(decode), codes, codes, 0) == to_code


def test_c_of_bank_swaps_comes_from_training_cases_and_r_from_test_cases():
    "c of a training case is marked by 2, r of a test case by 3; a judge that sees anything else is wrong"
    train, test = _Codes(2 * ONE_HOT, 0 * ONE_HOT, Y), _Codes(5 * ONE_HOT, 3 * ONE_HOT, Y)
    judge = lambda x: torch.where((x.max(1, keepdim=True).values == 2), x, x.roll(1, 1))
    assert _bank_swaps(SimpleNamespace(decode=lambda c, r: c), judge, train, test, 0) == 1
    mark = lambda c, r: torch.where(r.max(1, keepdim=True).values == 3, c, c.roll(1, 1))
    assert _bank_swaps(SimpleNamespace(decode=mark), lambda x: x, train, test, 0) == 1


def test_probes_are_trained_on_training_codes_of_their_own():
    rng = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(len(Y), 5, generator=rng)
    known = F.pad(ONE_HOT, (0, 1))
    told = _leakage(_Codes(known, noise(), Y), _Codes(known, noise(), Y))
    assert told["probe_c_accuracy"] == 1 and told["probe_r_accuracy"] < 0.6 and told["probe_r_svm_accuracy"] < 0.6
    swapped = _leakage(_Codes(noise(), known, Y), _Codes(noise(), known, Y))
    assert swapped["probe_c_accuracy"] < 0.6 and swapped["probe_r_accuracy"] == swapped["probe_r_svm_accuracy"] == 1
    other = _Codes(known.roll(6, 0), known.roll(6, 0), Y)  # in the test part, every class has the code of another
    assert set(_leakage(_Codes(known, known, Y), other).values()) <= {0.0, 0.25}
    most = _Codes(known[:9], known[:9], Y[:9])  # mostly cysts
    assert _leakage(most, _Codes(known[5:8], known[5:8], Y[5:8]))["majority_accuracy"] == pytest.approx(1 / 3)


def test_what_a_generator_is_compared_with_comes_from_the_training_part(parts, fold):
    dls, rois, cases = parts
    net = fold.network("disentangle")
    run = SimpleNamespace(
        needs=lambda task: ["net", "judge"],
        network={"net": net, "judge": fold.network("baseline")}.get,
        oracle_file=SimpleNamespace(exists=lambda: False),
    )
    batches = lambda role: [load_split(rois, cases.label, cases.fold_1 == role, S)]
    there = SimpleNamespace(batches=batches, device="cpu")
    found = _measure(run, Task(0, 1, "measure"), there, 0)
    (x_train, y_train), (x, y) = batches("train")[0], batches("test")[0]
    np.testing.assert_allclose(found["mean_image_mse"], ((x_train.mean(0) - x) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["pca_mse"], pca_mse(x_train, x, S.code_size), rtol=1e-5)
    assert found["majority_accuracy"] == majority_accuracy(y_train.numpy(), y.numpy())


def test_an_image_and_what_was_decoded_from_it_are_judged_together():
    "No fold learns from one of a pair and is asked about the other"
    images = torch.rand(13, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with patch("liverdis.study.codes.cross_val_score") as score:
        real_or_decoded(images, images.flip(-1))
    folds = list(score.call_args.kwargs["cv"])
    assert len(folds) == 5 and not any(set(train % 13) & set(test % 13) for train, test in folds)


def test_pca_knows_the_training_images_alone():
    "They differ in their first pixel, so that all others of an unseen image are lost"
    train, test = torch.zeros(20, 1, 4, 4), torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    train[:, 0, 0, 0] = torch.arange(20.0)
    lost = (test**2).flatten(1)[:, 1:].sum(1).mean() / 16
    assert pca_mse(train, test, 1) == pytest.approx(float(lost), rel=1e-4)


def test_grey_values_of_similarity_go_from_0_to_1():
    "To a wider range, an image and its negative would be alike"
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert mean_ssim(1 - x, x) < -0.5


def test_where_warnings_about_phase_2_begin():
    labels = [0] * 40 + [1] * 60  # guessing gives 0.6, and three standard errors above it are 0.747
    warned = lambda accuracy: bool(adversary_warnings([{"train_adv_acc": accuracy}], labels))
    assert warned(0.74) and not warned(0.76)
    history = [{"train_mse": error, "train_adv_loss": 1.0} for error in (1.0, 0.001)]  # the last epoch counts
    assert balance_warnings(history, -0.11) and not balance_warnings(history, -0.09)


# -- training ----------------------------------------------------------------------------------------------------------


def test_phase_2_knows_the_training_part_alone_and_starts_from_phase_1(parts, fold):
    learn, phase1 = GENERATORS["disentangle"].learner(fold), fold.network("baseline")
    assert fold.asked[0] == "baseline"
    for a, b in zip(learn.model.spec_encoder.parameters(), phase1[0].parameters()):
        assert torch.equal(a.cpu(), b)
    c, y = encode(learn.model.spec_encoder, learn.dls.train.unaugmented())
    torch.testing.assert_close(learn.model.code_mean, c.mean(0), rtol=1e-4, atol=1e-6)
    assert learn.loss_func.chance == pytest.approx(chance_entropy(y))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_adversary_has_its_steps_and_its_rate(parts, steps):
    s = replace(S, adversary_steps=steps, adversary_lr=0.0123, disentangle_lr=0.004)
    learn, made = disentangle_learner(parts[0](s), ARMS["baseline"].model(s), s), []

    class Count(Callback):
        run_valid = False

        def before_train(self):
            optimizer = self.learn.adversary.adv_opt
            step = optimizer.step
            optimizer.step = lambda *args: (made.append(optimizer.param_groups[0]["lr"]), step(*args))

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Count())
    assert made == [0.0123] * steps * len(learn.dls.train)


@pytest.mark.parametrize(
    "kind, change, how",
    [
        ("baseline", {"keep": "best"}, {"best": True, "one_cycle": True}),
        ("baseline", {"keep": "last"}, {"best": False, "one_cycle": True}),
        ("disentangle", {"disentangle_schedule": "one-cycle"}, {"best": False, "one_cycle": True}),
        ("disentangle", {"disentangle_schedule": "constant"}, {"best": False, "one_cycle": False}),
    ],
)
def test_settings_decide_how_long_and_which_epoch(tmp_path, kind, change, how):
    run = SimpleNamespace(settings=replace(S, **change), folder=tmp_path)
    with patch.object(experiment, "resumable_fit") as fit:
        experiment._fit(run, Task(0, 1, kind), None, 0)
    assert fit.call_args.kwargs == how


@pytest.mark.parametrize(
    "kind, phase",
    [("baseline", "classifier"), ("disentangle", "disentangle"), ("sharp", "disentangle"), ("vae", "disentangle")],
)
def test_every_kind_of_task_has_its_epochs_and_rate(tmp_path, kind, phase):
    s = replace(S, classifier_epochs=3, disentangle_epochs=5, classifier_lr=0.01, disentangle_lr=0.02)
    with patch.object(experiment, "resumable_fit") as fit:
        experiment._fit(SimpleNamespace(settings=s, folder=tmp_path), Task(0, 1, kind), None, 7)
    _, epochs, lr, _, seed = fit.call_args.args
    assert (epochs, lr, seed) == (getattr(s, f"{phase}_epochs"), getattr(s, f"{phase}_lr"), 7)


@pytest.mark.parametrize("kind, rate", [("disentangle", S.dropout), ("sharp", 0.0)])
def test_sharp_is_trained_without_dropout(parts, kind, rate):
    graph = task_graph(["proposed", "proposed-plus"])
    run = SimpleNamespace(settings=S, graph=graph, network=lambda task: ARMS["baseline"].model(S))
    fold = SimpleNamespace(dataloaders=parts[0], device="cpu")
    layers = experiment._learner(run, Task(0, 1, kind), fold, 0).model.modules()
    assert {m.p for m in layers if isinstance(m, nn.Dropout)} == {rate} and S.dropout > 0


@pytest.mark.parametrize("asked", [True, False])
def test_c_is_standardised_if_that_is_asked_for(parts, asked):
    s = replace(S, standardise=asked)
    net = disentangle_learner(parts[0](s), ARMS["baseline"].model(s), s).model
    untouched = bool((net.code_mean == 0).all() and (net.code_scale == 1).all())
    assert untouched != asked


def test_a_code_that_hardly_varies_is_divided_by_a_tenth_of_the_average_spread():
    _, spread = mean_and_spread(torch.tensor([[-1.0, -0.5, 0.0], [1.0, 0.5, 0.0]]))
    assert spread.tolist() == pytest.approx([2**0.5, 2**-0.5, 0.05 * 2**0.5])


def test_latents_of_the_vae_have_the_spread_that_its_encoder_says():
    vae, drawn = ConditionalVAE(S).train(), []
    vae.encode = lambda x, y: (torch.zeros(4000, S.code_size), torch.full((4000, S.code_size), float(np.log(4))))
    vae.decode = lambda y, z: drawn.append(z)
    torch.manual_seed(0)
    vae(None, None)
    assert drawn[0].std() == pytest.approx(2, abs=0.05)


def test_phase_2_is_paid_for_hiding_the_class(fold):
    "The weight of the adversary is that of the settings, with its sign"
    assert GENERATORS["disentangle"].learner(fold).loss_func.lam == S.lam < 0


def test_the_adversarys_steps_move_nothing_but_the_adversary(parts):
    "Without its term in the loss (lambda 0), encoder and decoder do not feel how it learns"
    trained = {}
    for lr in (1e-4, 0.1):
        s = replace(S, lam=0.0, dropout=0.0, adversary_steps=2, adversary_lr=lr)
        seed_all(0)
        phase1 = ARMS["baseline"].model(s)
        learn = disentangle_learner(parts[0](s), phase1, s)
        learn.dls.train.rng = random.Random(0)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, s.disentangle_lr)
        trained[lr] = learn.model
        assert not any(p.requires_grad for p in learn.model.adversary.parameters())
    slow, fast = trained.values()
    alike = lambda part: [torch.equal(a, b) for a, b in zip(*(getattr(m, part).parameters() for m in (slow, fast)))]
    assert all(alike("unspec_encoder")) and all(alike("decoder")) and not any(alike("adversary"))


def test_every_epoch_has_an_order_and_draws_of_its_own(parts, tmp_path):
    "An epoch is seeded by its number"

    class Look(Callback):
        run_valid = False
        states, orders = [], []

        def before_train(self):
            self.states.append(torch.get_rng_state())
            self.orders.append([])

        def before_batch(self):
            self.orders[-1] += self.y.tolist()

    learn = classifier_learner(parts[0](S), S, cbs=[look := Look()])
    resumable_fit(learn, 2, S.classifier_lr, tmp_path, 5, one_cycle=True, best=False)
    assert len(look.orders) == 2 and look.orders[0] != look.orders[1]
    assert not torch.equal(*look.states)


# -- arms --------------------------------------------------------------------------------------------------------------


def test_mixtures_follow_their_settings(fold):
    changes = {"share": 0.5, "until": 0.75, "others": 1, "alpha": 2.0, "favour": 1.0}
    s = replace(S, **{f"mixture_{k}": v for k, v in changes.items()})
    net = fold.network("disentangle")
    m = MixtureLabels(net, CodeBank(torch.rand(K, S.code_size), torch.arange(K), K), s, 5)
    assert (m.share, m.until, m.others, m.sampler.alpha, m.sampler.favour, m.sampler.seed) == (*changes.values(), 5)


def test_mixtures_of_two_seeds_differ():
    first, same, other = (ProportionSampler(1.0, K, seed)(torch.zeros(8).long()) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


INSIDE = {  # what changes nothing of the first batch as it comes to the network
    "baseline": {"code-mix", "code-extrapolation", "weight-average", "test-views"},
    "proposed": {"mixture-stop", "mixture-split"},
}


def test_no_two_arms_train_on_the_same(fold):
    batches = {name: first_batch(arm, fold) for name, arm in ARMS.items()}
    size = {name: len(x) / S.batch_size for name, (x, _) in batches.items()}
    assert {name: size[name] for name in ("mixture-quarter", "mixture-half")} == {
        "mixture-quarter": 1.25,
        "mixture-half": 1.5,
    }
    assert all(size[name] == 2 for name in ("duplicate-real", "proposed", "swap-r", "reconstruction", "proposed-plus"))
    alike = lambda a, b: a[0].shape == b[0].shape and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    same = {a: {b for b in batches if a != b and alike(batches[a], batches[b])} for a in batches}
    groups = {frozenset({a, *others}) for a, others in same.items() if others}
    assert groups == {frozenset({a, *others}) for a, others in INSIDE.items()}
    y = batches["label-smoothing"][1]
    assert torch.allclose(y.max(1).values, torch.tensor(0.9 + 0.1 / K))


def test_arms_of_mixtures_are_what_they_are_called(fold):
    learn = {name: ARMS[name].learner(fold) for name in ARMS if name.startswith(("proposed", "mixture"))}
    m = {name: cb for name, one in learn.items() for cb in one.cbs if isinstance(cb, MixtureLabels)}
    odd = {
        "mixture-random": RandomMixtures,
        "mixture-residual": ResidualMixtures,
        "mixture-agreed": AgreeingMixtures,
    }
    assert {name: type(cb) for name, cb in m.items()} == {name: odd.get(name, MixtureLabels) for name in learn}
    assert m["mixture-stop"].until == 0.75 and m["mixture-nearest"].others == 1
    assert m["mixture-own"].sampler.favour == m["proposed-plus"].sampler.favour == 1
    split = {name for name, one in learn.items() if any(isinstance(cb, SplitStatistics) for cb in one.cbs)}
    assert split == {"mixture-split", "proposed-plus"}
    assert all(m[name].sampler.seed == 7 for name in ("proposed", "mixture-half", "proposed-plus"))
    fold.asked.clear()
    ARMS["proposed-plus"].learner(fold)
    assert fold.asked == ["sharp"]


def test_targets_of_synthetic_images_stay_with_them(parts):
    "The target of each made image is its own mean, so one that wanders is seen"
    own = lambda x: x.mean((1, 2, 3))[:, None].expand(-1, K)
    make = lambda x, y: (x, own(x))
    learner = lambda dls: classifier_learner(dls, S, cbs=[SyntheticImages(make)])
    x, targets = first_batch(SimpleNamespace(learner=learner), parts[0](S))
    torch.testing.assert_close(targets[S.batch_size :], own(x[S.batch_size :]))
    assert (targets[: S.batch_size].sum(1) == 1).all() and own(x).unique().numel() > S.batch_size // 2


class _All(Callback):
    "The images of all training batches, as they come to the network"

    order, run_valid = 1000, False

    def before_fit(self):
        self.images = []

    def before_batch(self):
        self.images.append(self.x.as_subclass(torch.Tensor).flatten(1).clone())


def test_synthetic_images_end_when_the_settings_say(parts):
    made = SyntheticImages(lambda x, y: (x, F.one_hot(y, K).float()), until=0.5)
    learn = classifier_learner(parts[0](S), S, cbs=[made, seen := _All()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
    half = len(seen.images) // 2
    assert [len(x) for x in seen.images] == [2 * S.batch_size] * half + [S.batch_size] * half


def test_a_code_is_extrapolated_away_from_the_nearest_of_its_class():
    codes, y = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([0, 0, 1])
    assert extrapolated_codes(2)(codes, y)[0].tolist() == [[-0.5], [1.5], [9.0]]


def test_codes_are_mixed_by_share_and_learn_as_far_as_they_are_a_cases_own():
    sampler = ProportionSampler(1.0, 2)
    sampler.drawn = torch.tensor([[0.25, 0.75, 0.0], [0.75, 0.25, 0.0]])  # the last column is not used
    codes = torch.eye(2, requires_grad=True)
    mixed, shares = mixed_codes(sampler, 1)(codes, torch.tensor([0, 1]))
    assert mixed.tolist() == shares.tolist() == [[0.25, 0.75], [0.75, 0.25]]
    mixed[0].sum().backward()
    assert codes.grad.tolist() == [[0.25, 0.25], [0.0, 0.0]]


def test_classes_are_weighed_by_the_training_part(parts):
    "Six cysts and three of each other class; in the validation part it is the other way round"
    _, rois, cases = parts
    n_train = np.where(cases.label == "cyst", 6, 3)
    roles = np.where(cases.groupby("label").cumcount() < n_train, "train", "valid")
    fold = ArmFold(S, 0, lambda s: dataloaders(rois, cases.label, roles, s), None)
    weights = ARMS["balanced-loss"].learner(fold).class_weights.weights
    assert dict(zip(S.classes, weights.tolist())) == {c: 0.625 if c == "cyst" else 1.25 for c in S.classes}


def test_no_view_is_shown_twice(fold):
    "Neither within an epoch of duplicate-real nor in the next one"
    learn = ARMS["duplicate-real"].learner(fold)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=(seen := _All()))
    images = torch.cat(seen.images)
    assert len(images.unique(dim=0)) == len(images)
    m = RandomAffine(0.2, 30.0, 0.1)
    assert not torch.equal(m.matrices(4, "cpu"), m.matrices(4, "cpu"))


# -- images and predictions --------------------------------------------------------------------------------------------


def test_regions_follow_the_window_of_the_settings():
    wide = preset("smoke", window_centre=100.0, window_width=400.0)
    assert to_roi(np.float32([[[-100, 0, 100, 300]]]), wide).flatten().tolist() == [0, 0.25, 0.5, 1]


def test_augmentation_goes_as_far_as_the_settings_say():
    torch.manual_seed(0)
    m = RandomAffine(0.2, 30.0, 0.1).matrices(4000, "cpu")
    angle = torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    zoom = 1 / torch.hypot(m[:, 1, 0], m[:, 0, 0])
    for values, most in (
        (angle, 30),
        (zoom - 1, 0.2),
        (m[:, :, 2], 0.2),
    ):  # a share of the side is twice that of -1 to 1
        assert 0.98 * most < values.max() <= 1.001 * most and 0.98 * most < -values.min() <= 1.001 * most


def test_pixels_of_a_volume_are_not_always_square(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 3), np.int16), np.diag([0.7, 0.9, 2, 1])), tmp_path / "a.nii")
    header = volume_headers(tmp_path / "a.nii")[0]
    assert header.shape == (5, 6)  # rows run to the back, columns to the side
    np.testing.assert_allclose(header.spacing_mm, (0.9, 0.7), rtol=1e-6)


def test_prediction_is_the_mean_of_its_classifiers():
    p = Prediction(pd.DataFrame([[0.8, 0.2], [0.1, 0.9]], columns=["cyst", "healthy"]), *[None] * 5)
    np.testing.assert_allclose(p.mean, [0.45, 0.55])
    assert p.predicted == "healthy"


def test_random_partners_are_of_their_class():
    codes, y = torch.arange(12.0)[:, None], torch.arange(12) % 3
    bank = CodeBank(codes, y, 4)
    torch.manual_seed(0)
    drawn = torch.stack([bank.random_per_class(codes, y) for _ in range(40)])[..., 0]  # draw, query, class
    assert torch.equal(drawn[:, torch.arange(12), y], codes[:, 0].expand(40, 12)) and drawn[..., 3].isinf().all()
    for k in range(3):
        others = drawn[:, y != k, k]
        assert set(others.flatten().tolist()) == set(codes[y == k].flatten().tolist())


def test_neighbours_are_training_cases_by_standardised_codes():
    "Codes are twice the grey value; a case of the validation part is nearer, and not asked"
    c = np.array([[0.0], [1.0], [2.0], [0.4]])
    fold = SimpleNamespace(
        net=SimpleNamespace(spec_encoder=lambda x: x.flatten(1)[:, :1]),
        rows=lambda part: np.array([0, 1, 2]) if part == "train" else np.array([3]),
        spaces={"c": torch.from_numpy(c).float()},
        r=torch.zeros(4, 1),
        standardise=lambda c, r: {"c": 2 * c, "r": r},
        cases=pd.DataFrame({"case_id": list("abcv"), "label": "cyst"}),
    )
    found = _nearest([fold], torch.full((1, 2, 2), 0.4))
    assert found.case_id.tolist() == ["b", "a", "c"] and found.distance.iloc[0] == pytest.approx(0.2)


NEAR = pd.DataFrame({"case_id": ["a", "b"], "label": "cyst", "folds": 3, "distance": 0.1}, index=[4, 2])


@pytest.mark.parametrize("c, word, n", [(2.0, "UNLIKE", 2), (0.9, "not unlike", 0)])
def test_a_reader_is_warned_of_a_lesion_that_most_folds_find_far(c, word, n):
    e = Explanation(None, Neighbours(NEAR, None, pd.DataFrame({"c": [c, c, 0.5], "r": 0.5}, index=[1, 2, 3])))
    assert notice(e).startswith(f"{word} the training lesions ({n} of 3 folds find it far; ")
    assert f" {c:.1f} in c, 0.5 in r" in notice(e)
    p = Prediction(pd.DataFrame([[0.8, 0.2]], ["a"], ["cyst", "healthy"]), *[None] * 5)
    assert as_json(p, e)["unlike_training"] is (n > 0)


def test_an_explanation_is_of_these_lesions_and_of_the_predicted_class():
    run = SimpleNamespace(settings=S, network=lambda task: None)
    fold = SimpleNamespace(images=torch.arange(6.0).view(6, 1, 1, 1), task=Task(0, 1, "disentangle"))
    p, explained = SimpleNamespace(predicted="hemangioma", roi=torch.zeros(1, 2, 2)), []
    with patch.multiple(
        predict,
        Run=lambda folder: run,
        _folds=lambda run: [fold],
        _tasks=lambda run, arm: [Task(0, 1, arm)],
        _nearest=lambda folds, roi: NEAR,
        unlike=lambda fold, images: pd.DataFrame({"c": [0.5], "r": [0.5]}),
        find_spec=lambda name: True,
        occlusion=lambda net, roi, k: explained.append(S.classes[k]) or np.zeros((2, 2)),
    ):
        e = explain("run", p)
    assert e.neighbours.images.flatten().tolist() == [4, 2] and explained == ["hemangioma"]


def test_probabilities_of_a_cohort_of_two_classes_keep_their_names():
    "As the network's outputs are ordered"
    cases = pd.DataFrame({"case_id": ["a", "b"], "patient_id": ["p", "q"], "label": ["healthy", "metastasis"]})
    record = {"test": {"probabilities": {"a": [0.1, 0.9], "b": [0.7, 0.3]}}}
    run = SimpleNamespace(cases=lambda repeat: cases, record=lambda task: record, settings=TWO)
    rows = [row[3:] for row in _prediction_rows(run, Task(0, 1, "baseline"))]
    assert rows == [("a", "p", "healthy", "healthy", 0.1, 0.9), ("b", "q", "metastasis", "metastasis", 0.7, 0.3)]


class _Second(nn.Module):
    "Is sure of the second class"

    def forward(self, x):
        return torch.tensor([[0.0, 9.0]]).expand(len(x), -1)


def test_a_prediction_with_two_classes_and_pixels_that_are_not_square(tmp_path):
    "The names are those of the settings, and the square is one in mm, as that of the training"
    y, x = np.mgrid[:80, :100]
    mask = ((y - 40) / 8) ** 2 + ((x - 50) / 14) ** 2 < 1
    write_slice(tmp_path / "ct.dcm", np.random.default_rng(0).normal(90, 20, mask.shape), (0.8, 0.6))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    p = classify({"net": _Second()}, TWO, tmp_path / "ct.dcm", tmp_path / "mask.png")
    assert list(p.probabilities) == ["metastasis", "healthy"] and p.predicted == "healthy"
    longest = max(0.8 * np.ptp(np.flatnonzero(mask.any(1))) + 0.8, 0.6 * np.ptp(np.flatnonzero(mask.any(0))) + 0.6)
    sides = 0.8 * p.box.side, 0.6 * p.box.width
    np.testing.assert_allclose(sides, (1 + 2 * TWO.margin) * longest)


class _Mode(nn.Module):
    "Is sure of the first class in training mode, and of none in evaluation mode"

    def forward(self, x):
        return torch.tensor([[9.0 * self.training, 0, 0, 0]])


def test_networks_that_classify_are_in_evaluation_mode(tmp_path):
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    write_slice(tmp_path / "ct.dcm", np.random.default_rng(0).normal(90, 20, mask.shape), (0.8, 0.8))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    p = classify({"net": _Mode().train()}, S, tmp_path / "ct.dcm", tmp_path / "mask.png")
    assert set(p.mean) == {0.25}
