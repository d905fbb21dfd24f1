"""Runs that must not pass for good ones: each is spoiled, goes on to its end, and must then say what is wrong with it.

    mislead.py [--keep FOLDER]        some minutes on one core

A good run comes first, so that a warning means something. One row a run goes to nbs/results/attacks/misled.csv: in how
many folds results.json names the fault, and whether report.html and the command say all of it, too.
"""

import argparse
import html
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parents[1] / "nbs/results/attacks/misled.csv"
LIVERDIS = Path(sys.executable).with_name("liverdis")
# of the smoke preset, so that its decoder and its adversary learn something; a minute for two folds
SETTINGS = ["n_folds=2", "views=10", "disentangle_epochs=30", "valid_share=0.2"]
# what is spoiled: the setting, and words of the warning that must come
SPOILED = {
    "nothing": ([], ""),
    "lambda is -1e6": (["lam=-1e6"], "decoder"),
    "a decoder that never learns": (["disentangle_lr=1e-9"], "the decoder has collapsed"),
    "an adversary that never learns": (["adversary_lr=1e-9"], "the adversary never learned"),
    "one image under two patients": ([], "the same pixels"),
}


def twice(manifest: Path) -> Path:
    """A manifest beside another one, in which the first lesion of every class is a second patient's, too."""
    df = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    again = (
        df.groupby("label").head(1).assign(case_id=lambda d: d.case_id + "-b", patient_id=lambda d: d.patient_id + "b")
    )
    for path in again.image_path:
        shutil.copy(manifest.parent / path, manifest.parent / f"{path}b")
    again["image_path"] += "b"
    pd.concat([df, again]).to_csv(manifest.with_name("twice.csv"), index=False)
    return manifest.with_name("twice.csv")


def reproduce(manifest: Path, out: Path, changes: list[str]) -> str:
    """Run it; what the command said."""
    sets = [part for change in [*SETTINGS, *changes] for part in ("--set", change)]
    command = [
        LIVERDIS,
        "reproduce",
        manifest,
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--out",
        out,
        "--jobs",
        "1",
        *sets,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(__import__("os").environ, COLUMNS="300"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def judge(out: Path, said: str, expected: str) -> dict:
    """Whether a run names its fault, in how many folds, and everywhere."""
    folds = [f.get("warnings", []) for f in json.loads((out / "results.json").read_text())["folds"]]
    page, every = html.unescape((out / "report.html").read_text()), [text for fold in folds for text in fold]
    named = sum(any(expected in text for text in fold) for fold in folds) if expected else sum(map(bool, folds))
    print(*every, sep="\n")
    return dict(
        folds=len(folds),
        warned=named,
        in_report=all(t in page for t in every),
        in_command=all(t in said for t in every),
    )


def main() -> None:
    """Spoil, run, judge, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder of the runs")
    home = parser.parse_args().keep or Path(tempfile.mkdtemp(prefix="mislead-"))
    good = home / "phantom/manifest.csv"
    if not good.exists():
        from liverdis.cohort.phantom.cohort import write_phantom
        from liverdis.core import CLASSES

        write_phantom(good.parent, dict.fromkeys(CLASSES, 9))
    rows = []
    for number, (what, (changes, expected)) in enumerate(SPOILED.items()):
        manifest = twice(good) if "two patients" in what else good
        said = reproduce(manifest, home / str(number), changes)
        rows.append({"spoiled": what, **judge(home / str(number), said, expected)})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
