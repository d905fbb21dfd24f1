"""What every arm promises: a fit that was stopped goes on to the same numbers, or leaves the Learner usable."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback

from liverdis.cohort.manifest import load_manifest
from liverdis.cohort.phantom.cohort import write_phantom
from liverdis.core import CLASSES, InputError
from liverdis.method.arms import ARMS, GENERATORS, ArmFold, load_arms
from liverdis.method.data import dataloaders, phantom_fold
from liverdis.method.rivals import WeightAverage
from liverdis.settings import preset
from liverdis.study.experiment import run_task
from liverdis.study.run import Task, start_run
from liverdis.study.training import Checkpoint, resumable_fit, seed_all
from liverdis.use.explore import classifier_of
from liverdis.use.trained import open_fold

S = preset("smoke")
EPOCHS = 2


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


def fitted(arm, fold, folder, stop=False):
    "The weights of the last epoch, and the history"
    seed_all(5)
    learn = ARMS[arm].learner(fold())
    learn.add_cb(Stop("after_pred")) if stop else None
    state = resumable_fit(learn, EPOCHS, S.classifier_lr, folder, 5, one_cycle=True, best=False).state
    return state["kept"], [{k: v for k, v in row.items() if k != "time"} for row in state["history"]]


@pytest.mark.parametrize("arm", ARMS)
def test_stopped_arm_goes_on_to_the_same_numbers(arm, fold, tmp_path):
    straight = fitted(arm, fold, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        fitted(arm, fold, tmp_path / "stopped", stop=True)
    torch.rand(9)
    resumed = fitted(arm, fold, tmp_path / "stopped")
    assert resumed[1] == straight[1]
    assert all(torch.equal(w, straight[0][name]) for name, w in resumed[0].items())


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


OWN = '''
from liverdis.method.arms import arm
from liverdis.method.disentangle import classifier_learner


@arm(needs="disentangle")
def own_one(fold):
    "baseline by another name"
    return classifier_learner(fold.dls, fold.settings)
'''
TRAIN = """
import sys
from liverdis.cohort.manifest import load_manifest
from liverdis.cohort.phantom.cohort import write_phantom
from liverdis.method.arms import load_arms
from liverdis.study.experiment import run_task
from liverdis.study.run import Task, start_run
from liverdis.use.trained import EXAMPLE, example_run

folder, file = sys.argv[1:]
load_arms(file)
example_run(folder)
start_run(folder, load_manifest(f"{folder}/phantom/manifest.csv"), EXAMPLE, arms=["own-one"], arms_file=file)
run_task(folder, Task(0, 1, "own-one"), file)
"""


def test_a_run_with_an_arm_of_ones_own_can_be_used_later(tmp_path):
    "By processes that know nothing of the arm; its own classifiers ask for its file"
    run, file = tmp_path / "run", tmp_path / "mine.py"
    file.write_text(OWN)
    subprocess.run([sys.executable, "-c", TRAIN, run, file], check=True)
    row = load_manifest(run / "phantom" / "manifest.csv").df.iloc[0]
    image, outline = (run / "phantom" / path for path in (row.image_path, row.annotation_path))
    predict = [Path(sys.executable).with_name("liverdis"), "predict", run, image, "--annotation", outline]
    predict += ["--segment", row.segment]
    said = {
        options: subprocess.run([*predict, *options], capture_output=True, text=True)
        for options in ((), ("--arm", "own-one"), ("--arm", "own-one", "--arms", file))
    }
    without, refused, own = said.values()
    assert without.returncode == own.returncode == 0, without.stderr + own.stderr
    assert all("nearest training lesions" in r.stdout for r in (without, own))
    assert refused.returncode == 2 and "--arms FILE.py" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    export = [predict[0], "export", run, "--arm", "own-one", "--onnx", tmp_path / "onnx"]
    refused, own = (subprocess.run([*export, *o], capture_output=True, text=True) for o in ((), ("--arms", file)))
    assert refused.returncode == 2 and "--arms FILE.py" in refused.stderr and own.returncode == 0, own.stderr
    with pytest.raises(InputError, match="--arms FILE.py"):
        classifier_of(open_fold(run), "own-one")


def test_an_average_holds_no_hooks_of_other_callbacks(fold):
    learn = ARMS["mixture-split"].learner(fold())
    learn.add_cb(WeightAverage())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    layers = list(learn.weight_average.average.module.modules())
    assert len(layers) > 5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers)


UNTRUE = """from liverdis.method.arms import arm
from liverdis.method.mixture import mixture_learner

@arm
def forgot_needs(fold):
    return mixture_learner(fold.dls, fold.network("disentangle"), fold.settings)

@arm(needs="circle-2")
def circle_1(fold):
    return

@arm(needs="circle-1")
def circle_2(fold):
    return
"""


def test_what_an_arm_uses_must_be_among_its_needs(tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(UNTRUE)
    made = load_arms(file)
    try:
        manifest = write_phantom(tmp_path / "phantom", dict.fromkeys(CLASSES, 9), seed=1)
        with pytest.raises(InputError, match="in a circle: circle-1, circle-2, circle-1|circle-2, circle-1, circle-2"):
            start_run(folder, manifest, S, arms=["circle-1", "circle-2"], arms_file=file)
        start_run(folder, manifest, S, arms=["proposed", "forgot-needs"], arms_file=file)
        with pytest.raises(InputError, match="'forgot-needs' uses 'disentangle' without saying so"):
            run_task(folder, Task(0, 1, "forgot-needs"), file)
        assert not (folder / "tasks" / "r0_f1_forgot-needs.json").exists()
    finally:
        for name in made:
            del ARMS[name]
