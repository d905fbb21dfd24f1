"""Draw a grid of swaps from a run with weights, for the notebook use/swaps: nbs/images/swap_grid.png.

    python tools/swap_figure.py RUN

`make publish` leaves such a run in runs/demo. The second test case of each class of fold 1 is taken, whatever it shows.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from liverdis.use.swaps import draw_swap_grid  # noqa: E402
from liverdis.use.trained import open_fold  # noqa: E402

TARGET = Path(__file__).resolve().parent.parent / "nbs/images/swap_grid.png"


def main(run):
    fold = open_fold(run)
    test = fold.rows("test")
    cases = [int(test[fold.labels[test] == k][1]) for k in range(len(fold.classes))]
    figure = draw_swap_grid(fold, cases, cases)
    figure.savefig(TARGET, dpi=70, facecolor="white", metadata={"Software": None})
    print(f"{TARGET.name} drawn")


if __name__ == "__main__":
    main(*sys.argv[1:])
