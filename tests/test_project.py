"""What holds for the repository as a whole: one version, a lock in step, notebooks fit to be read, and nothing of one machine in any of it."""

import importlib.util
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

import liverdis

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts)
)
MACHINE_PATH = re.compile(
    r"(?<![\w.~*+-])(?:/(?:work|tmp|home|root|Users|private|opt)(?=[/\s\"'`)\],:]|$)|[A-Z]:\\\\?Users)", re.M
)
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
        yield from (
            text(v)
            for kind, v in out.get("data", {}).items()
            if isinstance(v, (str, list)) and (kind.startswith("text/") or "svg" in kind)
        )


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
    found += [
        f"a path of one machine: {m.group()}" for s in (*sources, *output_texts(nb)) for m in MACHINE_PATH.finditer(s)
    ]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_fit_to_be_read(path):
    found = problems(
        json.loads(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix(), path.stat().st_size
    )
    assert not found


def notebook(**replaced):
    "A sound notebook of three cells, with cells replaced by name"
    cells = {
        "badge": {"cell_type": "markdown", "source": [f"[![Open in Colab](badge.svg)]({colab_url('nbs/00_a.ipynb')})"]},
        "install": {
            "cell_type": "code",
            "source": [
                "import sys\n",
                "if 'google.colab' in sys.modules: get_ipython().system('pip install -q liverdis')",
            ],
        },
        "code": {
            "cell_type": "code",
            "source": ["#| export\n", "def f(): pass"],
            "outputs": [{"output_type": "stream", "text": ["../shared and https://x.org/home"]}],
        },
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
        (
            notebook(code=code("p", output_type="execute_result", data={"text/plain": [f"PosixPath('{SLASH}tmp/x')"]})),
            10,
            "one machine",
        ),
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
    wanted = [
        Requirement(r)
        for key in ("requirements", "dev_requirements", "bench_requirements")
        for r in SETTINGS[key].split()
    ]
    assert not [str(r) for r in wanted if not any(r.specifier.contains(v) for v in pins.get(r.name, []))]
    assert not re.search(r"://|--(extra-)?index-url|--find-links|file:|^-e", lock, re.M)


@pytest.mark.parametrize(
    "module",
    sorted(p for p in (ROOT / "liverdis").glob("*.py") if p.name not in ("__init__.py", "_modidx.py")),
    ids=lambda p: p.name,
)
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


# -- workflows, citation file, stored outputs ------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
ACTION = re.compile(r"^\s*(?:- )?uses: *(\S+)", re.M)


def against_schema(schema, *files):
    "What check-jsonschema says of files; the schemas come with it, nothing is fetched"
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)],
        capture_output=True,
        text=True,
    )


def unpinned(workflow):
    return [
        action for action in ACTION.findall(workflow) if not re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+\.\d+\.\d+", action)
    ]


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_follow_the_schema(schema, tmp_path):
    assert {"test.yaml", "nightly.yaml", "deploy.yaml", "release.yaml"} <= {p.name for p in WORKFLOWS}
    good = against_schema(schema, *WORKFLOWS)
    assert not good.returncode, good.stdout + good.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text("on: push\njobs:\n  a:\n    runs-on: x\n    step: []\n", encoding="utf-8")
    assert against_schema(schema, bad).returncode == 1


def test_actions_are_pinned():
    assert not {
        p.name: unpinned(p.read_text(encoding="utf-8")) for p in WORKFLOWS if unpinned(p.read_text(encoding="utf-8"))
    }
    assert unpinned("  uses: a/b@main\n  - uses: a/b@v4\n  - uses: a/b@v1.2.3\n") == ["a/b@main", "a/b@v4"]


def test_workflows_call_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = {
        name
        for p in WORKFLOWS
        for name in re.findall(r"^ *(?:- )?run: make ([a-z ]+)$", p.read_text(encoding="utf-8"), re.M)
        for name in name.split()
    }
    assert called and called <= targets


def test_python_versions_of_ci():
    "From the oldest that settings.ini allows, each once on either system"
    body = (ROOT / ".github/workflows/test.yaml").read_text(encoding="utf-8")
    versions = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", body)[1])
    assert versions == [
        f"3.{n}" for n in range(int(SETTINGS["min_python"].split(".")[1]), int(versions[-1].split(".")[1]) + 1)
    ]
    assert "ubuntu" in body and "macos" in body


def test_citation_file(tmp_path):
    good = against_schema("vendor.citation-file-format", ROOT / "CITATION.cff")
    assert not good.returncode, good.stdout
    bad = tmp_path / "CITATION.cff"
    bad.write_text("cff-version: 1.2.0\ntitle: no authors, no message\n", encoding="utf-8")
    assert against_schema("vendor.citation-file-format", bad).returncode == 1


def test_stale_outputs_are_told(tmp_path):
    "A change to code, output, quoted result or module is found, and so is an error; other words are no change"
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools/run_notebooks.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)

    def write(name, body):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")

    def made(marked=True):
        printed = nbformat.v4.new_output("stream", name="stdout", text="2\n")
        sources = ["from liverdis.a import f", "Path('results')"]
        nb = nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_markdown_cell("text"),
                nbformat.v4.new_code_cell("print(1 + 1)", outputs=[printed]),
                *map(nbformat.v4.new_code_cell, sources),
            ]
        )
        return nb if not marked else nb.metadata.update(liverdis={"ran": mark}) or nb

    def why(change=lambda nb: None):
        nb = made()
        change(nb)
        return runner.stale(nb, tmp_path)

    write("nbs/results/a.csv", "1")
    write("liverdis/a.py", "from .b import g\ndef f(): return g()\n")
    write("liverdis/b.py", 'def g():\n    "Says one"\n    return 1  # one\n')
    write("liverdis/c.py", "h = 1\n")
    assert "not stored by" in runner.stale(made(marked=False), tmp_path)
    mark = runner.digest(made(marked=False), tmp_path)
    assert why() == ""
    assert why(lambda nb: nb.cells[0].update(source="other words")) == ""
    assert "changed since" in why(lambda nb: nb.cells[1].update(source="print(1 + 2)"))
    assert "changed since" in why(lambda nb: nb.cells[1].outputs[0].update(text="3\n"))
    assert "changed since" in why(lambda nb: nb.cells[1].update(outputs=[]))
    assert "ValueError" in why(
        lambda nb: nb.cells[1].update(
            outputs=[nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
        )
    )
    write("liverdis/b.py", 'def g():\n    "Returns one"\n    return 1\n')
    write("liverdis/c.py", "h = 2\n")
    assert why() == ""
    write("liverdis/b.py", "def g():\n    return 2\n")
    assert "changed since" in why()
    write("liverdis/b.py", "def g():\n    return 1\n")
    assert why() == ""
    write("nbs/results/a.csv", "2")
    assert "changed since" in why()
