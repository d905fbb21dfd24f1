"""What an oracle sees in mixtures, beside what their labels say: nbs/results/why/labels.csv.

    python tools/seen_labels.py runs/why/runs

The folder holds the runs of a study with an oracle, as `liverdis study why --arms studies/why.py` leaves them. Each
training image of each fold is mixed 20 times, as `proposed` does it, as some of its variants would, with cases drawn
at random instead of the nearest ones, and pixel by pixel without any code. A row of the table is a fold and a class:
for labels that give this class about the same share, in steps of a tenth, it has their mean share, the oracle's mean
probability, and their number. Labels without this class have a row of their own. So have the real images, and the
same images decoded from their own codes, with shares 0 and 1.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from liverdis.method.data import load_split
from liverdis.method.disentangle import encode
from liverdis.method.mixture import CodeBank, MixtureLabels
from liverdis.method.variants import RandomMixtures
from liverdis.study.run import Run, Task

TARGET = Path(__file__).resolve().parent.parent / "nbs/results/why/labels.csv"
SCHEMES = {
    "proposed": (MixtureLabels, {}),
    "mixture-alpha-03": (MixtureLabels, {"mixture_alpha": 0.3}),
    "mixture-alpha-3": (MixtureLabels, {"mixture_alpha": 3.0}),
    "mixture-nearest": (MixtureLabels, {"mixture_others": 1}),
    "mixture-random": (RandomMixtures, {}),
}
DRAWS = 20


def blended(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Images mixed in proportions w, pixel by pixel, with a random case of each other class."""
    parts = CodeBank(x.flatten(1), y, w.shape[1]).random_per_class(x.flatten(1), y)
    return torch.einsum("bk,bkd->bd", w, parts).view_as(x)


def by_share(labels: torch.Tensor, seen: torch.Tensor, classes: tuple[str, ...]) -> pd.DataFrame:
    """Means over images `(N,K)` whose labels give a class about the same share."""
    pairs = pd.DataFrame({"label": classes * len(labels), "share": labels.flatten(), "seen": seen.flatten()})
    groups = pairs.groupby(["label", pairs.share.gt(0).rename("named"), pairs.share.mul(10).round().rename("tenth")])
    return groups.agg(share=("share", "mean"), seen=("seen", "mean"), n=("seen", "size")).reset_index()


@torch.no_grad()
def tables(run: Run, fold: int) -> Iterator[pd.DataFrame]:
    """One for each kind of images that the training part gives."""
    cases, s = run.cases(0), run.settings
    x, y = load_split(run.rois(), cases.label, cases[f"fold_{fold}"] == "train", s)
    net, oracle = run.network(Task(0, fold, "disentangle")), run.oracle()
    codes, n = encode(net.spec_encoder, [(x, y)])[0], len(s.classes)
    bank, own = CodeBank(codes, y, n), F.one_hot(y, n).float()
    look = lambda images: oracle(images).softmax(1)
    of_kind = lambda kind, labels, seen: by_share(labels, seen, s.classes).assign(images=kind)
    yield of_kind("real", own, look(x))
    yield of_kind("decoded", own, look(net.decode(codes, net.unspec_encoder(x))))
    torch.manual_seed(fold)
    for kind, (maker, changes) in SCHEMES.items():
        mixtures = maker(net, bank, replace(s, **changes), seed=fold)
        images, labels = zip(*(mixtures.mix(x, y) for _ in range(DRAWS)))
        yield of_kind(kind, torch.cat(labels), torch.cat([look(i) for i in images]))
    seen = torch.cat([look(blended(x, y, w)) for w in labels])  # in the proportions of the last scheme
    yield of_kind("pixels-random", torch.cat(labels), seen)


def main(folder):
    """All folds of all runs below `folder`."""
    rows = []
    for run in map(Run, sorted(p.parent for p in Path(folder).glob("*/run.json"))):
        variant = "" if run.folder.name == "study" else run.folder.name
        for fold in range(1, run.info["n_folds"] + 1):
            rows += [table.assign(variant=variant, fold=fold) for table in tables(run, fold)]
    TARGET.parent.mkdir(exist_ok=True)
    columns = ["variant", "fold", "images", "label", "named", "share", "seen", "n"]
    pd.concat(rows)[columns].to_csv(TARGET, index=False, float_format="%.4f")
    print(f"{TARGET.name}: {pd.concat(rows)[['variant', 'fold']].drop_duplicates().shape[0]} folds")


if __name__ == "__main__":
    main(*sys.argv[1:])
