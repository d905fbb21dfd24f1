"""What the published numbers stand on, each on made-up data whose answer is known."""

import copy
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

from liverdis.cohort.ct import volume_headers
from liverdis.core import CLASSES
from liverdis.method.arms import ARMS, GENERATORS, ArmFold
from liverdis.method.data import RandomAffine, dataloaders, load_split, phantom_fold, to_roi
from liverdis.method.disentangle import chance_entropy, disentangle_learner, encode
from liverdis.method.mixture import CodeBank, MixtureLabels, ProportionSampler
from liverdis.method.variants import AgreeingMixtures, ResidualMixtures, SplitStatistics
from liverdis.settings import preset
from liverdis.study import experiment
from liverdis.study.codes import majority_accuracy, pca_mse
from liverdis.study.comparison import corrected_t, difference, fold_differences
from liverdis.study.evaluate import PREDICTION_COLUMNS, calibration, confusion, draw_confusion
from liverdis.study.experiment import _bank_swaps, _Codes, _leakage, _measure, _swaps
from liverdis.study.run import Task
from liverdis.study.training import seed_all
from liverdis.use.predict import Prediction, _nearest

S = preset("smoke")
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


# -- what is measured of the codes -------------------------------------------------------------------------------------

Y = torch.arange(K).repeat_interleave(6)
ONE_HOT = F.one_hot(Y, K).float()


def fake(decode):
    "A generator whose images are codes, and the judge that takes an image for its class"
    return SimpleNamespace(decode=decode), lambda images: images


def test_a_swap_is_seen_as_the_class_of_c_if_that_is_what_is_decoded():
    codes = _Codes(ONE_HOT, ONE_HOT, Y)
    for decode, to_code in ((lambda c, r: c, 1), (lambda c, r: r, 0)):
        found = _swaps(*fake(decode), ONE_HOT, codes, 0, "swap", "judge")
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
    odd = {"mixture-residual": ResidualMixtures, "mixture-agreed": AgreeingMixtures}
    assert {name: type(cb) for name, cb in m.items()} == {name: odd.get(name, MixtureLabels) for name in learn}
    assert m["mixture-stop"].until == 0.75 and m["mixture-nearest"].others == 1
    assert m["mixture-own"].sampler.favour == m["proposed-plus"].sampler.favour == 1
    split = {name for name, one in learn.items() if any(isinstance(cb, SplitStatistics) for cb in one.cbs)}
    assert split == {"mixture-split", "proposed-plus"}
    assert all(m[name].sampler.seed == 7 for name in ("proposed", "mixture-half", "proposed-plus"))
    fold.asked.clear()
    ARMS["proposed-plus"].learner(fold)
    assert fold.asked == ["sharp"]


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
    found = _nearest([fold], torch.full((1, 2, 2), 0.4), 1)
    assert found.case_id.tolist() == ["b"] and found.distance.iloc[0] == pytest.approx(0.2)
