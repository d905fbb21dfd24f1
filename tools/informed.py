"""The proposed scheme with a generator that has seen ten times as many lesions as its classifier: nbs/results/informed.

    python tools/informed.py runs/why 2

The folder is a study with an oracle and further cohorts, as `liverdis study why --arms studies/why.py` leaves it; 2 is
the number of processes. Phase 2 is trained once, on the oracle's lesions and its codes, for EPOCHS epochs, which are
some ten times as many steps each as an epoch of a fold. Its networks then stand in for those of each fold: they encode
the fold's training cases, and decode the mixtures that the fold's classifier is trained with, from the seed that
`proposed` has there. `predictions.csv.gz` is as that of a study; `measures.csv` compares the two generators on the test
cases of each fold, which neither has seen.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from joblib import Parallel, delayed
from safetensors.torch import load_file, save_file

from liverdis.method.arms import GENERATORS
from liverdis.method.data import dataloaders, load_split
from liverdis.method.disentangle import Disentangler, disentangle_learner, encode
from liverdis.method.learner import keep_memory
from liverdis.method.mixture import mixture_learner
from liverdis.study.evaluate import PROBABILITIES
from liverdis.study.run import Run, Task, task_seed
from liverdis.study.training import resumable_fit, seed_all

TARGET = Path(__file__).resolve().parent.parent / "nbs/results/informed"
EPOCHS = 40


def fold_data(run: Run, fold: int):
    """DataLoaders of a fold."""
    cases = run.cases(0)
    return dataloaders(run.rois(), cases.label, cases[f"fold_{fold}"], run.settings)


def informed_generator(study: Path) -> Disentangler:
    """Phase 2 on the lesions of the oracle, trained now unless it is there."""
    run, file = Run(study / "oracle"), study / "informed" / "disentangle.safetensors"
    s, task = run.settings, Task(0, 1, "disentangle")
    net = GENERATORS["disentangle"].network(s)
    if not file.exists():
        torch.set_num_threads(s.threads)
        seed = task_seed(s.seed, 0, 1, task.kind)
        seed_all(seed)
        learn = disentangle_learner(fold_data(run, 1), run.network(Task(0, 1, "baseline")), s)
        cycle = s.disentangle_schedule == "one-cycle"
        resumable_fit(learn, EPOCHS, s.disentangle_lr, file.parent, seed, one_cycle=cycle, best=False)
        save_file({name: w.contiguous() for name, w in learn.model.state_dict().items()}, file)
    net.load_state_dict(load_file(file))
    return net.eval()


def trained_with(run: Run, fold: int, generator: Callable[[], Disentangler]) -> pd.DataFrame:
    """Test predictions of a classifier trained as `proposed`, with mixtures of this generator.

    The generator is loaded after the seed is set, as a run does it: its untrained weights draw random numbers.
    """
    s, cases, seed = run.settings, run.cases(0), task_seed(run.settings.seed, 0, fold, "proposed")
    seed_all(seed)
    learn = mixture_learner(fold_data(run, fold), generator(), s, seed)
    with tempfile.TemporaryDirectory() as folder:
        args = s.classifier_epochs, s.classifier_lr, folder, seed
        resumable_fit(learn, *args, one_cycle=True, best=s.keep == "best")
    tested = cases[f"fold_{fold}"] == "test"
    p = encode(learn.model, [load_split(run.rois(), cases.label, tested, s)])[0].softmax(1)
    table = cases.loc[tested, ["case_id", "patient_id", "label"]].reset_index(drop=True)
    table = table.assign(repeat=0, fold=fold, predicted=[s.classes[k] for k in p.argmax(1)])
    return table.join(pd.DataFrame(p.numpy(), columns=PROBABILITIES))


@torch.no_grad()
def quality(run: Run, fold: int, net: Disentangler) -> dict[str, float]:
    """The error on unseen cases, and the share of these, decoded, that the oracle names rightly."""
    cases = run.cases(0)
    x, y = load_split(run.rois(), cases.label, cases[f"fold_{fold}"] == "test", run.settings)
    decoded = net.decode(net.spec_encoder(x), net.unspec_encoder(x))
    right = (run.oracle()(decoded).argmax(1) == y).float().mean()
    return {"test_mse": float((decoded - x).square().mean()), "oracle_rebuilt_accuracy": float(right)}


def of_fold(study: Path, folder: Path, fold: int) -> tuple[pd.DataFrame, list[dict]]:
    """Predictions of a fold, and what its two generators are like."""
    run, variant = Run(folder), "" if folder.name == "study" else folder.name
    torch.set_num_threads(run.settings.threads)
    keep_memory()
    informed, own = informed_generator(study), run.network(Task(0, fold, "disentangle")).eval()
    at = {"variant": variant, "repeat": 0, "fold": fold}
    both = [at | {"generator": name} | quality(run, fold, net) for name, net in (("informed", informed), ("own", own))]
    predictions = trained_with(run, fold, partial(informed_generator, study))
    return predictions.assign(arm="proposed-informed", variant=variant), both


def main(study: str, jobs: str = "1"):
    """All folds of all runs of a study."""
    informed_generator(Path(study))
    runs = sorted(p.parent for p in Path(study).glob("runs/*/run.json"))
    folds = [(Path(study), run, fold) for run in runs for fold in range(1, Run(run).info["n_folds"] + 1)]
    tables, measures = zip(*Parallel(int(jobs))(delayed(of_fold)(*at) for at in folds))
    TARGET.mkdir(exist_ok=True)
    how = {"index": False, "float_format": "%.4f", "compression": {"method": "gzip", "mtime": 0}}
    pd.concat(tables).to_csv(TARGET / "predictions.csv.gz", **how)
    rows = pd.DataFrame([row for of_one in measures for row in of_one])
    rows.to_csv(TARGET / "measures.csv", index=False, float_format="%.5g")
    print(f"{TARGET.name}: {len(folds)} folds")


if __name__ == "__main__":
    main(*sys.argv[1:])
