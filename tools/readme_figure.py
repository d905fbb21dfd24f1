"""Draw the comparison on the front page from the stored results: nbs/images/arms.png.

    python tools/readme_figure.py

`make publish` changes the stored run and should be followed by this. Nothing else writes the picture.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from liverdis.study.comparison import compare, draw_comparison  # noqa: E402
from liverdis.study.evaluate import read_predictions  # noqa: E402

NBS = Path(__file__).resolve().parent.parent / "nbs"


def main():
    """All arms of the headline study against as many more real views."""
    headline = NBS / "results/headline"
    more_data = json.loads((headline / "study.json").read_text())["oracle_accuracy"]
    figure, ax = plt.subplots(figsize=(9, 6.2), layout="constrained")
    draw_comparison(compare(read_predictions(headline / "predictions.csv.gz")), more_data=more_data, ax=ax)
    target = NBS / "images/arms.png"
    figure.savefig(target, dpi=100, facecolor="white", metadata={"Software": None})
    print(f"{target.relative_to(NBS.parent)} drawn")


if __name__ == "__main__":
    main()
