"""Runs that must not pass for good ones: each is spoiled, goes on to its end, and must then say what is wrong with it.

    mislead.py [--keep FOLDER]        some twenty minutes on two cores that do nothing else

A run that is not spoiled comes first and must not give the warning. One row a run goes to
nbs/results/attacks/misled.csv: in how many folds results.json gives which warning, and whether report.html and the
command give all of them, too.
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
# the demo preset: its cohort and its phase 2, of which the warnings tell; the classifiers of the other phases are short
SETTINGS = ["classifier_epochs=2", "views=5"]
WARNINGS = [
    *("the decoder has collapsed", "the decoder hardly uses r"),
    *("the adversary never learned", "the adversary outweighs", "the same pixels"),
]
# what is spoiled: the settings, and the warning that must come; what cannot get better with time is given less of it
SPOILED = {
    "nothing": ([], ""),
    "lambda is -1e6": (["lam=-1e6"], "the adversary outweighs"),
    "a decoder that never learns": (["disentangle_lr=1e-9", "disentangle_epochs=20"], "the decoder has collapsed"),
    "an adversary that never learns": (["adversary_lr=1e-9", "disentangle_epochs=40"], "the adversary never learned"),
    "one image under two patients": (["disentangle_epochs=10"], "the same pixels"),
}


def twice(manifest: Path) -> Path:
    """A manifest beside another one, in which the first lesion of every class is a second patient's, too."""
    df = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    again = df.groupby("label").head(1).copy()
    again[["case_id", "patient_id"]] += "b"
    for path in again.image_path:
        shutil.copy(manifest.parent / path, manifest.parent / f"{path}b")
    again["image_path"] += "b"
    pd.concat([df, again]).to_csv(manifest.with_name("twice.csv"), index=False)
    return manifest.with_name("twice.csv")


def reproduce(manifest: Path, out: Path, changes: list[str]) -> str:
    """Run it; what the command said."""
    sets = [part for change in [*SETTINGS, *changes] for part in ("--set", change)]
    given = ["--manifest", manifest, "--preset", "demo", "--device", "cpu", "--out", out]
    done = subprocess.run([LIVERDIS, "reproduce", *given, *sets], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def judge(out: Path, said: str) -> dict:
    """In how many folds a run gives each warning, and whether the report and the command give them all."""
    folds = [f.get("warnings", []) for f in json.loads((out / "results.json").read_text())["folds"]]
    every, page = [text for fold in folds for text in fold], html.unescape((out / "report.html").read_text())
    print(*every, sep="\n")
    counts = {warning: sum(any(warning in text for text in fold) for fold in folds) for warning in WARNINGS}
    told = dict(in_report=all(text in page for text in every), in_command=all(text in said for text in every))
    return dict(folds=len(folds), **counts, **told)


def main() -> int:
    """Spoil, run, judge, store; 1 if a fault was not named, or named where it was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder of the runs")
    home = parser.parse_args().keep or Path(tempfile.mkdtemp(prefix="mislead-"))
    good = home / "phantom/manifest.csv"
    if not good.exists():
        from liverdis.cohort.phantom.cohort import write_phantom

        write_phantom(good.parent)
    rows, failed = [], False
    for number, (what, (changes, expected)) in enumerate(SPOILED.items()):
        manifest = twice(good) if "two patients" in what else good
        said = reproduce(manifest, home / str(number), changes)
        rows.append({"spoiled": what, "must_warn": expected, **judge(home / str(number), said)})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(RESULTS, index=False)
        unsaid = not (rows[-1]["in_report"] and rows[-1]["in_command"])
        failed |= unsaid or bool(expected) and (rows[0][expected] > 0 or rows[-1][expected] == 0)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
