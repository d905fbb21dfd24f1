"""Stop a command at random moments, starve it and crowd it; then run it again and compare with a run left alone.

    interrupt.py ingest                      10 times each attack, on small made-up input
    interrupt.py reproduce --times 5         the smoke preset
    interrupt.py study --times 5 --seed 1    a study of two arms of it

Attacks: `kill` (SIGKILL to the parent alone, three times in a row), `stop` (Ctrl-C, to parent and workers as a terminal
sends it), `full disk` (a small disk in memory; needs root), `read-only` (the same disk, mounted so) and `two at once`.
An attack is survived if what it ends says at most one line, no process is left half a minute later, and the same
command then gives, byte for byte, the files of a run that was left alone. Only what tells when a run began and how long
a step took is left out of the comparison; see `TIMES`.
One row an attack goes to nbs/results/attacks/interrupt.csv.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil

RESULTS = Path(__file__).parents[1] / "nbs/results/attacks/interrupt.csv"
COLUMNS = ["attack", "target", "n", "ok", "orphans", "differing_files"]
MARK = "LIVERDIS_INTERRUPT"  # an environment variable by which a command's processes are known, whatever their parent
PATIENCE = 30  # seconds: a process that imports the library for workers sees only then that its parent is gone
LIVERDIS = Path(sys.executable).with_name("liverdis")


# -- what is attacked --------------------------------------------------------------------------------------------------


def ingest(home: Path) -> list[str]:
    """Four made-up patients, one of whom has no lesion and takes sizes from the others."""
    from liverdis.cohort.deidentify import load_key
    from liverdis.cohort.example import write_example

    for k in range(4):
        balls = [(6, 62, 46, 9), (10, 92, 74, 7)] if k else []
        write_example(home / f"source/p{k}", f"Name{k}", f"MRN-{k}", k, balls)
    (home / "labels.csv").write_text("name,label\nlivertumor,metastasis\n")
    load_key(home / "key")
    return "ingest source --labels labels.csv --key key --healthy-per-patient 2".split()


def reproduce(home: Path) -> list[str]:
    """The smoke preset, whose phantom is part of its folder."""
    return "reproduce --preset smoke --device cpu".split()


def study(home: Path) -> list[str]:
    """Two arms of the smoke preset as a study."""
    (home / "small.toml").write_text('about = "Smoke?"\npreset = "smoke"\narms = ["baseline", "proposed"]\n')
    return "study small.toml --device cpu".split()


TARGETS = dict(ingest=ingest, reproduce=reproduce, study=study)


class Command:
    """A command in a folder with its inputs, run into any output folder."""

    def __init__(self, target: str, home: Path):
        self.home, self.arguments = home, TARGETS[target](home)

    def start(self, out: Path, jobs: int = 2) -> subprocess.Popen:
        """Begin to run it, in a session of its own."""
        env = os.environ | {
            MARK: str(out),
            "COLUMNS": "200",
            "GIT_DIR": os.devnull,
        }  # a commit meanwhile changes nothing
        args = [LIVERDIS, *self.arguments, "--jobs", str(jobs), "--out", out / "it"]
        said = tempfile.TemporaryFile("w+")  # a pipe would end only with the last process that was left behind
        apart = dict(stdout=subprocess.DEVNULL, stderr=said, cwd=self.home, start_new_session=True)
        process = subprocess.Popen(args, env=env, **apart)
        process.stderr = said
        return process

    def finish(self, out: Path) -> str:
        """Run it to its end in one process; what it said on stderr if it failed."""
        process = self.start(out, jobs=1)
        said = said_by(process)
        return said if process.returncode else ""


def said_by(process: subprocess.Popen) -> str:
    """What a command has said on stderr when it ends."""
    process.wait(timeout=600)
    process.stderr.seek(0)
    return process.stderr.read()


def alive(out: Path) -> list[psutil.Process]:
    """Processes of a command, whatever their parent."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get(MARK) == str(out) and p.status() != psutil.STATUS_ZOMBIE:
                found.append(p)
        except psutil.Error:
            pass
    return found


def left_over(out: Path) -> list[psutil.Process]:
    """Processes of a command that are alive `PATIENCE` seconds after its end; they are named and killed."""
    deadline = time.monotonic() + PATIENCE
    while (found := alive(out)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for p in found:
        print("  left behind:", *p.cmdline()[:4], flush=True)
        p.kill()
    return found


# -- what it leaves ----------------------------------------------------------------------------------------------------


TIMES = re.compile(
    rb'"(?:started|time|wall_time_s|compute_time_s)": (?:\{[^}]+\}|[^,\n}]+)'  # JSON
    rb"|, \d+ processes"  # in study.json: how many work side by side, which is no part of the numbers
    rb"|<dt>(?:started|wall time)</dt><dd>[^<]+"  # report.html
)


def files_of(out: Path) -> dict[str, bytes]:
    """All files below a folder but locks, without times."""
    found = (p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock")
    return {str(p.relative_to(out)): without_times(p) for p in found}


def without_times(path: Path) -> bytes:
    """What a file holds, but when something began and how long it took."""
    content = path.read_bytes()
    if path.name in ("history.csv", "measures.csv"):  # the last column is a time
        return b"\n".join(line.rpartition(b",")[0] for line in content.splitlines())
    return TIMES.sub(b"", content) if path.suffix in (".json", ".html") else content


class Reference:
    """What a run that is left alone makes, how long it takes, and from when on it writes."""

    def __init__(self, command: Command, home: Path):
        self.begins, self.takes = self._timed(command, home / "alone")
        self.files = files_of(home / "alone")
        self.size = sum(p.stat().st_size for p in (home / "alone").rglob("*"))
        said = command.finish(home / "again")
        assert not said and not self.differing(home / "again"), (said, self.differing(home / "again"))

    def _timed(self, command: Command, out: Path) -> tuple[float, float]:
        start, process, begins = time.monotonic(), command.start(out), None
        while process.poll() is None:
            if begins is None and (out / "it").exists():
                begins = time.monotonic() - start
            time.sleep(0.01)
        assert process.returncode == 0, said_by(process)
        return begins or 0.0, time.monotonic() - start

    def differing(self, out: Path) -> list[str]:
        """Names of files that another run has made otherwise, not made, or made beside them."""
        found = files_of(out)
        return sorted(n for n in self.files.keys() | found.keys() if self.files.get(n) != found.get(n))


# -- the attacks -------------------------------------------------------------------------------------------------------


def one_line(said: str) -> bool:
    """Whether a command said one line at most; what else it said is shown."""
    lines = said.strip().splitlines()
    if len(lines) > 1:
        print(*lines[:3], "...", *lines[-3:], sep="\n  ", flush=True)
    return len(lines) <= 1


def _interrupted(command: Command, out: Path, ref: Reference, rng: random.Random, end: Callable) -> str:
    """End a command while it runs, three times of four after it has begun to write; what it said."""
    late = rng.random() < 0.75
    moment = rng.uniform(0, ref.takes - ref.begins if late else ref.takes)
    while True:
        start, process = time.monotonic(), command.start(out)
        while late and not (out / "it").exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            print(f"  after {time.monotonic() - start:.1f} s and {len(files_of(out))} files", flush=True)
            end(process)
            return said_by(process)
        assert process.returncode == 0, said_by(process)
        shutil.rmtree(out / "it")  # it was faster than the one left alone
        moment *= 0.7


IN_A_ROW = {"kill": 3}  # before the command may finish


# Each yields whether the command behaved, and ends when what it made was looked at


@contextmanager
def kill(command: Command, out: Path, ref: Reference, rng: random.Random) -> Iterator[bool]:
    """SIGKILL to the parent alone at a random moment, again while it takes up its work, and once more."""
    left = 0
    for _ in range(IN_A_ROW["kill"]):
        _interrupted(command, out, ref, rng, lambda p: p.kill())
        left += len(left_over(out))
    yield left == 0


@contextmanager
def stop(command: Command, out: Path, ref: Reference, rng: random.Random) -> Iterator[bool]:
    """Ctrl-C at a random moment, as a terminal sends it: to all processes of the command."""
    yield one_line(_interrupted(command, out, ref, rng, lambda p: os.killpg(p.pid, signal.SIGINT)))


@contextmanager
def small_disk(out: Path, size: int) -> Iterator[None]:
    """A disk in memory at `out`."""
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", out], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", out], check=True)


@contextmanager
def full_disk(command: Command, out: Path, ref: Reference, rng: random.Random) -> Iterator[bool]:
    """A disk on which a random share of the result has room; then it grows."""
    with small_disk(out, max(4096, int(ref.size * rng.uniform(0.02, 0.95)))):
        said = command.finish(out)
        subprocess.run(["mount", "-o", f"remount,size={4 * ref.size + 2**24}", out], check=True)
        yield one_line(said) and said != ""


@contextmanager
def read_only(command: Command, out: Path, ref: Reference, rng: random.Random) -> Iterator[bool]:
    """A folder, empty or half done, on a disk that may not be written; then it may."""
    with small_disk(out, 4 * ref.size + 2**24):
        if rng.random() < 0.5:
            _interrupted(command, out, ref, rng, lambda p: p.kill())
            left_over(out)
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        said = command.finish(out)
        subprocess.run(["mount", "-o", "remount,rw", out], check=True)
        yield one_line(said) and said != ""


@contextmanager
def two_at_once(command: Command, out: Path, ref: Reference, rng: random.Random) -> Iterator[bool]:
    """Two runs in one folder, the second up to two seconds later."""
    first = command.start(out)
    time.sleep(rng.uniform(0, 2))
    second = command.start(out)
    said = [text if p.returncode else "" for p, text in [(p, said_by(p)) for p in (first, second)]]
    yield all(map(one_line, said)) and "" in said


ATTACKS = {"kill": kill, "stop": stop, "full disk": full_disk, "read-only": read_only, "two at once": two_at_once}


def survive(name: str, command: Command, home: Path, ref: Reference, rng: random.Random) -> tuple[bool, int, list[str]]:
    """One attack: whether it went well, how many processes it left, and the files that then differed."""
    out = home / "attacked"
    with ATTACKS[name](command, out, ref, rng) as ok:
        orphans, said, differing = len(left_over(out)), command.finish(out), ref.differing(out)
    print(said, end="", flush=True)
    shutil.rmtree(out)
    return ok and not orphans and not said and not differing, orphans, differing


# -- the table ---------------------------------------------------------------------------------------------------------


def record(row: dict) -> None:
    """Replace the row of the same attack and target in the table of results."""
    old = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=COLUMNS)
    table = pd.concat([old, pd.DataFrame([row], columns=COLUMNS)])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    table.drop_duplicates(["attack", "target"], keep="last").sort_values(["target", "attack"]).to_csv(
        RESULTS, index=False
    )


def main() -> int:
    """Run the attacks and write the table; the number of attacks that did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--times", type=int, default=10, help="each attack")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="interrupt-"))
    command = Command(given.target, home)
    ref = Reference(command, home)
    print(f"{given.target}: {ref.takes:.1f} s, writes after {ref.begins:.1f}, {len(ref.files)} files", flush=True)
    harmed = 0
    for name in given.attacks:
        rng, each, ok, orphans, differing = random.Random(f"{given.seed} {name}"), IN_A_ROW.get(name, 1), 0, 0, []
        for k in range(given.times):
            good, alive, unlike = survive(name, command, home, ref, rng)
            ok, orphans, differing = ok + good, orphans + alive, differing + unlike
            harmed += not good
            if not good:
                print(f"{name} {k}: {alive} processes left, differing: {unlike}", flush=True)
            row = dict(zip(COLUMNS, (name, given.target, each * (k + 1), each * ok, orphans, len(differing))))
            record(row)  # so that a night that ends early counts
        print(row, flush=True)
    shutil.rmtree(home)
    return harmed


if __name__ == "__main__":
    sys.exit(main() > 0)
