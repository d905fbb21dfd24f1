"""Draw nbs/images/swap.png, the picture on the front page, from the stored demo run.

    python tools/readme_figure.py

`make publish` changes the stored run and should be followed by this. Nothing else writes the picture.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402

from liverdis.study.paper_figures import fig3  # noqa: E402

NBS = Path(__file__).resolve().parent.parent / "nbs"


def main():
    with np.load(NBS / "results/demo/figures.npz") as arrays:
        figure = fig3(dict(arrays))
    target = NBS / "images/swap.png"
    figure.savefig(target, dpi=100, facecolor="white", metadata={"Software": None})
    print(f"{target.relative_to(NBS.parent)} drawn")


if __name__ == "__main__":
    main()
