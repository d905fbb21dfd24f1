"""`python -m benchmarks`: measure on this machine, print the table, keep every round as CSV."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich import print

from liverdis.study.run import pick_device

from .ingest import bench_ingest, ingest_ratios
from .loading import bench_loading, loading_rates
from .memory import against_size, bench_memory
from .search import bench_search, search_times
from .stacked import bench_stacked, each
from .steps import bench_steps, synthesis_shares, training_ratios
from .variants import bench_variants, variant_ratios

Out = Annotated[Path | None, typer.Option(help="CSV of all rounds [default: bench-COMMAND.csv]")]
Table = Callable[[pd.DataFrame], pd.DataFrame]

app = typer.Typer(help="How fast liverdis is, and against what; results stand in nbs/cards/speed.ipynb.")


def report(rounds: pd.DataFrame, out: Path, *tables: Table) -> None:
    """Print the tables made of all rounds, and store the rounds."""
    for table in tables:
        print(table(rounds).to_string(), end="\n\n")
    rounds.to_csv(out, index=False, float_format="%.4g")
    print(f"{len(rounds)} rows in {out}")


@app.command()
def steps(
    preset: Annotated[str, typer.Option(help="demo or paper")] = "demo",
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one]")] = None,
    out: Out = None,
) -> None:
    """A training step of each phase: plain PyTorch, the same with our networks, our Learner."""
    rounds = bench_steps(preset, device or pick_device())
    report(rounds, out or Path("bench-steps.csv"), training_ratios, synthesis_shares)


@app.command()
def loading(out: Out = None) -> None:
    """An epoch of augmented batches from five loaders, MONAI's and fastai's among them."""
    report(bench_loading(), out or Path("bench-loading.csv"), loading_rates)


@app.command()
def memory(out: Out = None) -> None:
    """Training from memory and from a file, against the number of regions."""
    report(bench_memory(), out or Path("bench-memory.csv"), against_size)


@app.command()
def search(
    run: Annotated[Path | None, typer.Option(help="finished run whose codes are searched too")] = None,
    out: Out = None,
) -> None:
    """The nearest codes of a batch, against the size of the bank, and faiss."""
    report(bench_search(run=run), out or Path("bench-search.csv"), search_times)


@app.command()
def ingest(
    source: Annotated[Path | None, typer.Option(help="folder of one patient [default: one is made up]")] = None,
    out: Out = None,
) -> None:
    """`liverdis ingest` and pydicom alone on the same files."""
    report(bench_ingest(source), out or Path("bench-ingest.csv"), ingest_ratios)


@app.command()
def stacked(
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one]")] = None,
    out: Out = None,
) -> None:
    """A step of phase 1 for one network, for ten and for thirty at once."""
    report(bench_stacked(device or pick_device()), out or Path("bench-stacked.csv"), each)


@app.command()
def variants(out: Out = None) -> None:
    """Upsampling, memory layout, number format, compiling: what was tried, beside what was kept."""
    report(bench_variants(), out or Path("bench-variants.csv"), variant_ratios)


if __name__ == "__main__":
    app()
