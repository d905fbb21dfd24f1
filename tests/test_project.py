"""What holds for the repository as a whole: one version, a lock in step, notebooks fit to be read, and nothing of one machine in any of it."""
import json
import re
import subprocess
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import liverdis

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts))
MACHINE_PATH = re.compile(r"(?<![\w.~*+-])(?:/(?:work|tmp|home|root|Users|private|opt)(?=[/\s\"'`)\],:]|$)|[A-Z]:\\\\?Users)", re.M)
SIZE_LIMIT = 800_000

config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]


def text(value):
    return "".join(value)


def code_cells(nb):
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def exports(nb):
    return any(re.search(r"^#\|\s*exporti?\b", text(c["source"]), re.M) for c in code_cells(nb))


def output_texts(nb):
    "Everything a reader can read in the outputs; pictures are base64 and hold no path"
    for out in (o for c in code_cells(nb) for o in c.get("outputs", [])):
        yield text(out.get("text", ""))
        yield from (text(v) for kind, v in out.get("data", {}).items() if isinstance(v, (str, list)) and (kind.startswith("text/") or "svg" in kind))


def colab_url(path):
    return "https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/".format(**SETTINGS) + path


def problems(nb, path, size):
    "What keeps notebook `nb`, stored at `path` in the repository with `size` bytes, from being shown to a reader"
    markdown = "\n".join(text(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    install = [text(c["source"]) for c in code_cells(nb) if "pip install" in text(c["source"])]
    errors = [o for c in code_cells(nb) for o in c.get("outputs", []) if o["output_type"] == "error"]
    sources = (text(c["source"]) for c in nb["cells"])
    found = []
    if f"({colab_url(path)})" not in markdown:
        found.append("no Colab badge that opens this very file")
    if not any("'google.colab' in sys.modules" in s.replace('"', "'") for s in install):
        found.append("no install cell for Colab, guarded by 'google.colab' in sys.modules")
    if errors:
        found.append("an error is stored as output: " + errors[0].get("ename", ""))
    if exports(nb) and not any(c.get("outputs") for c in code_cells(nb)):
        found.append("exports code and shows nothing: run it and store the outputs")
    if size >= SIZE_LIMIT:
        found.append(f"{size} bytes, the limit is {SIZE_LIMIT}")
    found += [f"a path of one machine: {m.group()}" for s in (*sources, *output_texts(nb)) for m in MACHINE_PATH.finditer(s)]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_fit_to_be_read(path):
    found = problems(json.loads(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix(), path.stat().st_size)
    assert not found


def notebook(**replaced):
    "A sound notebook of three cells, with cells replaced by name"
    cells = {
        "badge": {"cell_type": "markdown", "source": [f"[![Open in Colab](badge.svg)]({colab_url('nbs/00_a.ipynb')})"]},
        "install": {"cell_type": "code", "source": ["import sys\n", "if 'google.colab' in sys.modules: get_ipython().system('pip install -q liverdis')"]},
        "code": {"cell_type": "code", "source": ["#| export\n", "def f(): pass"], "outputs": [{"output_type": "stream", "text": ["../shared and https://x.org/home"]}]},
    }
    return {"cells": list({**cells, **replaced}.values())}


def code(source, **output):
    return {"cell_type": "code", "source": [source], "outputs": [output] if output else []}


SLASH = "/"  # spelled apart: this file, too, is searched for machine paths


@pytest.mark.parametrize(
    "nb, size, said",
    [
        (notebook(badge={"cell_type": "markdown", "source": [colab_url("nbs/00_b.ipynb")]}), 10, "Colab badge"),
        (notebook(install=code("!pip install -q liverdis")), 10, "install cell"),
        (notebook(code=code("1/0", output_type="error", ename="ZeroDivisionError")), 10, "ZeroDivisionError"),
        (notebook(code=code("#| export\ndef f(): pass")), 10, "shows nothing"),
        (notebook(), SIZE_LIMIT, "limit"),
        (notebook(code=code(f"open('{SLASH}home/me/a.dcm')", output_type="stream", text="")), 10, "one machine"),
        (notebook(code=code("p", output_type="execute_result", data={"text/plain": [f"PosixPath('{SLASH}tmp/x')"]})), 10, "one machine"),
    ],
    ids=["badge", "install", "error", "outputs", "size", "path in source", "path in output"],
)
def test_the_notebook_check_can_fail(nb, size, said):
    assert not problems(notebook(), "nbs/00_a.ipynb", 10)
    (problem,) = problems(nb, "nbs/00_a.ipynb", size)
    assert said in problem


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_one_version():
    assert SETTINGS["version"] == liverdis.__version__ == version("liverdis")
    headings = re.findall(r"^## \[?(Unreleased|[\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased" or headings[0] == SETTINGS["version"]


def test_lock_is_in_step_with_settings():
    "Every requirement has a pin that it allows, and the lock names no index, host or path"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = {}
    for name, pinned in re.findall(r"^([a-z\d][a-z\d.-]*)==([^ ;]+)", lock, re.M):
        pins.setdefault(name, []).append(pinned)
    wanted = [Requirement(r) for r in f"{SETTINGS['requirements']} {SETTINGS['dev_requirements']}".split()]
    assert not [str(r) for r in wanted if not any(r.specifier.contains(v) for v in pins.get(r.name, []))]
    assert not re.search(r"://|--(extra-)?index-url|--find-links|file:|^-e", lock, re.M)


@pytest.mark.parametrize("module", sorted(p for p in (ROOT / "liverdis").glob("*.py") if p.name not in ("__init__.py", "_modidx.py")), ids=lambda p: p.name)
def test_module_has_its_notebook(module):
    "nbdev_export leaves the module of a removed notebook behind"
    source = re.search(r"File to edit: \.\./(nbs/\S+\.ipynb)", module.read_text(encoding="utf-8"))
    assert source and (ROOT / source.group(1)).exists()


def test_contributing_maps_every_notebook():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [p.name for p in NOTEBOOKS if f"`{p.relative_to(ROOT / 'nbs').with_suffix('').as_posix()}`" not in guide]


def test_no_machine_path_in_tracked_text():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for path in (ROOT / name for name in listed.stdout.split("\0") if name and not name.endswith(".ipynb")):
        try:
            body = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a binary file, or one that was just removed
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in MACHINE_PATH.finditer(body)]
    assert not found
