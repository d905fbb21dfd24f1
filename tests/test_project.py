"""What holds for the repository as a whole: one version, a lock in step, notebooks fit to be read."""

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version

import check_jsonschema
import facts
import nbformat
import notebooks
import pytest
import run_notebooks
from click.testing import CliRunner
from notebooks import ROOT
from packaging.requirements import Requirement

import liverdis

BOOKS = notebooks.find()
NOTEBOOKS = [book.path for book in BOOKS.values()]
MODULES = [p for p in sorted((ROOT / "liverdis").rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]
MACHINE_PATH = re.compile(
    r"(?<![\w.~*+-])(?:/(?:work|tmp|home|root|Users|private|opt)(?=[/\s\"'`)\],:]|$)|[A-Z]:\\\\?Users)", re.M
)
QUOTED = re.compile(r"""['"](?:\.\./)+(results|images)\b""")  # folders beside the notebooks
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
    quoted = {m.group(1) for c in code_cells(nb) for m in QUOTED.finditer(text(c["source"]))}
    for folder in quoted if not any("os.chdir('liverdis/nbs/" in s for s in install) else ():
        if not any(f"cp -r liverdis/nbs/{folder}" in s for s in install):
            found.append(f"reads {folder}, which its install cell does not copy on Colab")
    if any("import nbdev" in text(c["source"]) for c in code_cells(nb)):
        found.append("imports nbdev, which liverdis does not bring to Colab; `make export` exports")
    if any("(sys.executable).with_name" in text(c["source"]) for c in code_cells(nb)):
        found.append("looks for a command beside Python, where Colab has none; take sysconfig's scripts")
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=list(BOOKS))
def test_notebook_is_fit_to_be_read(path):
    found = problems(
        json.loads(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix(), path.stat().st_size
    )
    assert not found


def notebook(**replaced):
    "A sound notebook of three cells, with cells replaced by name"
    cells = {
        "badge": {
            "cell_type": "markdown",
            "source": [f"[![Open in Colab](badge.svg)]({colab_url('nbs/cohort/a.ipynb')})"],
        },
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
        (notebook(badge={"cell_type": "markdown", "source": [colab_url("nbs/b.ipynb")]}), 10, "Colab badge"),
        (notebook(install=code("!pip install -q liverdis")), 10, "install cell"),
        (notebook(code=code("run = Path('../results') / 'demo'")), 10, "does not copy"),
        (notebook(code=code("import nbdev; nbdev.nbdev_export()")), 10, "imports nbdev"),
        (notebook(code=code("Path(sys.executable).with_name('liverdis')")), 10, "where Colab has none"),
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
    ids=[
        "badge",
        "install",
        "results on Colab",
        "nbdev on Colab",
        "command on Colab",
        "error",
        "outputs",
        "size",
        "path in source",
        "path in output",
    ],
)
def test_the_notebook_check_can_fail(nb, size, said):
    assert not problems(notebook(), "nbs/cohort/a.ipynb", 10)
    (problem,) = problems(nb, "nbs/cohort/a.ipynb", size)
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
    wanted = [Requirement(r) for key in SETTINGS if key.endswith("requirements") for r in SETTINGS[key].split()]
    assert not [str(r) for r in wanted if not any(r.specifier.contains(v) for v in pins.get(r.name, []))]
    assert not re.search(r"://|--(extra-)?index-url|--find-links|file:|^-e", lock, re.M)


# -- notebooks, their modules, and what these import -------------------------------------------------------------------


def source_of(path):
    "The notebook that a module says it is exported from"
    found = re.search(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+\.ipynb)\.", path.read_text("utf-8"), re.M)
    return found and (path.parent / found[1]).resolve()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_has_its_notebook(path):
    "At the same place in nbs/; nbdev_export leaves the module of a removed notebook behind"
    assert source_of(path) == ROOT / "nbs" / path.relative_to(ROOT / "liverdis").with_suffix(".ipynb")
    assert source_of(path).exists()


@pytest.mark.parametrize("book", [b for b in BOOKS.values() if b.module], ids=lambda b: b.name)
def test_notebook_has_its_module(book):
    assert book.module == book.name.replace("/", ".")
    module = ROOT / "liverdis" / f"{book.name}.py"
    assert module in MODULES
    assert book.title and ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) == book.subtitle


def test_imports_only_go_back():
    assert not notebooks.forward(BOOKS)


def made_up(**code):
    "Notebooks in memory that export `code`, an underscore in the name for a slash"
    books = {}
    for name, source in code.items():
        name = name.replace("_", "/")
        cells = [f"#| default_exp {name.replace('/', '.')}", f"#| export\n{source}"]
        books[name] = notebooks.Notebook(name, None, [{"cell_type": "code", "source": s} for s in cells])
    return books


@pytest.mark.parametrize(
    "line",
    [
        "from liverdis.use.b import f",
        "from liverdis.use import b",
        "import liverdis.use.b as other",
        "from ..use.b import f",
        "from ..use import b",
        "def late():\n    from liverdis.use.b import f",
    ],
)
def test_an_import_that_points_forward_is_found(line):
    books = made_up(cohort_a=line, use_b="from liverdis.cohort.a import late")
    assert notebooks.uses(books) == {"cohort/a": {"use/b"}, "use/b": {"cohort/a"}}
    assert notebooks.forward(books) == [("cohort/a", "use/b")]


def test_a_circle_of_imports_is_found():
    books = made_up(cohort_a="from .b import f", cohort_b="from .c import f", cohort_c="from .a import f")
    assert len(notebooks.forward(books)) == 1


def test_reading_order():
    "Rooms as given; in a room, a notebook after those that it imports"
    books = made_up(
        study_a="", cohort_x_b="", cohort_a="from liverdis.cohort.x.b import f", core="", tutorials_z="", index=""
    )
    assert notebooks.in_order(books) == ["index", "core", "cohort/x/b", "cohort/a", "study/a", "tutorials/z"]
    with pytest.raises(ValueError, match="no place for talks/slides"):
        notebooks.in_order(made_up(talks_slides=""))


def private_imports(path):
    "Names with an underscore that a module takes from another one of ours"
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        ours = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "liverdis")
        found += (
            [f"{path.relative_to(ROOT)}: {a.name}" for a in node.names if re.match("_[^_]", a.name)] if ours else []
        )
    return found


def test_private_names_stay_at_home():
    assert not [line for path in MODULES for line in private_imports(path)]


def test_contributing_lists_the_notebooks():
    "The list is made, so it is that of the notebooks"
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert notebooks.with_map(guide, notebooks.map_of(BOOKS)) == guide
    assert all(f"| [`{name}`]" in guide for name in BOOKS)
    with pytest.raises(ValueError, match="to stand once"):
        notebooks.with_map("no markers", "")


# -- facts about the code ----------------------------------------------------------------------------------------------


def test_lines_fit():
    assert not facts.long_lines(BOOKS, ROOT)[0]


def test_public_functions_have_types():
    arguments, n, returns, m = facts.untyped(BOOKS)
    assert len(arguments) <= n / 100, arguments
    assert len(returns) <= m / 100, returns


def test_public_names_have_docstrings():
    "Modules, classes, functions, methods and properties, as pydocstyle's D1 has it"
    ruff = [sys.executable, "-m", "ruff", "check", "--select=D1", "--ignore=D104,D105,D107", "--quiet", "liverdis"]
    said = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert not said.returncode, said.stdout


def test_checks_can_fail():
    assert not [line for book in BOOKS.values() for line in facts.idle_checks(book)]
    assert not facts.idle_tests(ROOT)


@pytest.mark.parametrize(
    "check, fails",
    [
        ("assert True", False),
        ("assert 1 + 1 == 2", False),
        ("assert (f() == 1, 'one')", False),
        ("assert f() or True", False),
        ("x = f()\nassert x == x", False),
        ("x = f()\ntest_eq(x, x)", False),
        ("test_eq('a', 'a')", False),
        ("x = [1]\nassert len(x) == 1", False),
        ("assert f() == 1", True),
        ("x = f()\nassert x == 1", True),
        ("test_eq(f(), f())", True),
        ("x = []\nx.append(f())\nassert x == [1]", True),
        ("def g():\n    return f()\nassert g() == 1", True),
        ("for i in f():\n    assert i", True),
        ("assert Path('made').read_text() == ''", True),
    ],
)
def test_checks_that_cannot_fail_are_found(check, fails):
    (book,) = made_up(cohort_a="def f(): return 1").values()
    book.cells.append({"cell_type": "code", "source": check})
    assert bool(facts.idle_checks(book)) != fails


def test_tests_that_check_nothing_are_found(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text(
        """
def check(x): assert x
def test_a(): check(1)
def test_b():
    with pytest.raises(ValueError): f()
def test_c(): subprocess.run("true", check=True)
def test_d(): f()
""",
        encoding="utf-8",
    )
    assert facts.idle_tests(tmp_path) == ["tests/test_a.py: test_d checks nothing"]


# -- the repository ----------------------------------------------------------------------------------------------------


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


# -- workflows, citation file, stored outputs --------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
ACTION = re.compile(r"^\s*(?:- )?uses: *(.+)", re.M)
PINNED = re.compile(r"([\w.-]+/[\w./-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+")  # a tag can be moved, a commit cannot


def against_schema(schema, *files):
    "What check-jsonschema says of files; the schemas come with it, nothing is fetched"
    return CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, *map(str, files)])


def unpinned(workflow):
    return [action for action in ACTION.findall(workflow) if not PINNED.fullmatch(action)]


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_follow_the_schema(schema, tmp_path):
    assert {"test.yaml", "nightly.yaml", "deploy.yaml", "release.yaml"} <= {p.name for p in WORKFLOWS}
    good = against_schema(schema, *WORKFLOWS)
    assert not good.exit_code, good.output
    bad = tmp_path / "bad.yaml"
    bad.write_text("on: push\njobs:\n  a:\n    runs-on: x\n    step: []\n", encoding="utf-8")
    assert against_schema(schema, bad).exit_code == 1


def test_actions_are_pinned():
    "To a commit, with the version that it is as a comment; every action to one commit"
    texts = {p.name: p.read_text(encoding="utf-8") for p in WORKFLOWS}
    assert not {name: unpinned(text) for name, text in texts.items() if unpinned(text)}
    pins = set(ACTION.findall("\n".join(texts.values())))
    assert len(pins) == len({PINNED.fullmatch(pin)[1] for pin in pins})
    loose = ["a/b@main", "a/b@v1.2.3", f"a/b@{'0' * 40}"]
    assert unpinned("\n".join(f"  - uses: {a}" for a in [*loose, f"a/b@{'0' * 40} # v1.2.3"])) == loose


def test_workflows_call_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    listed = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert set(listed.replace("\\", "").split()) == targets
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


@pytest.mark.parametrize(
    "schema, pattern",
    [
        ("dependabot", "dependabot.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_forms_follow_their_schemas(schema, pattern):
    files = sorted((ROOT / ".github").glob(pattern))
    good = against_schema(f"vendor.{schema}", *files)
    assert files and not good.exit_code, good.output


def test_devcontainer_uses_what_there_is():
    made = json.loads((ROOT / ".devcontainer.json").read_text(encoding="utf-8"))
    assert made["postCreateCommand"].startswith("make venv ")
    version_of_image = re.search(r"python:(3\.\d+)", made["image"])[1]
    assert f'"{version_of_image}"' in (ROOT / ".github/workflows/test.yaml").read_text(encoding="utf-8")


def test_citation_file(tmp_path):
    good = against_schema("vendor.citation-file-format", ROOT / "CITATION.cff")
    assert not good.exit_code, good.output
    bad = tmp_path / "CITATION.cff"
    bad.write_text("cff-version: 1.2.0\ntitle: no authors, no message\n", encoding="utf-8")
    assert against_schema("vendor.citation-file-format", bad).exit_code == 1


def test_stale_outputs_are_told(tmp_path):
    "A change to code, output, quoted result or module is found, and so is an error; other words are no change"
    runner = run_notebooks

    def write(name, body):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")

    def made(marked=True):
        printed = nbformat.v4.new_output("stream", name="stdout", text="2\n")
        starts = "subprocess.run([Path(sysconfig.get_path('scripts')) / 'liverdis', 'demo'])"
        sources = ["from liverdis.cohort import a  # and b by it", "Path('../results')", starts]
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
    write("liverdis/cohort/a.py", "from ..method.b import g\ndef f(): return g()\n")
    write("liverdis/method/b.py", 'def g():\n    "Says one"\n    return 1  # one\n')
    write("liverdis/method/c.py", "h = 1\n")
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
    assert why(lambda nb: nb.cells[2].update(source="from liverdis.cohort import a  # other words")) == ""
    assert "changed since" in why(lambda nb: nb.cells[1].update(source="#| eval: false\nprint(1 + 1)"))
    write("liverdis/method/b.py", 'def g():\n    "Returns one"\n    return 1\n')
    write("liverdis/method/c.py", "h = 2\n")
    assert why() == ""
    write("liverdis/method/b.py", "def g():\n    return 2\n")
    assert "changed since" in why()
    write("liverdis/method/b.py", "def g():\n    return 1\n")
    assert why() == ""
    write("liverdis/use/cli.py", "k = 1\n")
    assert "changed since" in why()  # the command is started, not imported
    (tmp_path / "liverdis/use/cli.py").unlink()
    assert why() == ""
    write("nbs/results/a.csv", "2")
    assert "changed since" in why()
