"""The one place that knows the notebooks in nbs/: their modules, what these import, and the order to read them in.

    python tools/notebooks.py               the notebooks in reading order
    python tools/notebooks.py --map FILE    write the table of notebooks between the markers of FILE (CONTRIBUTING.md)

The order follows from the folders and, within a folder, from the imports of exported cells: a notebook comes after
those that it imports. Only the Python that runs this is needed, no package, so that it also reads older trees.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "liverdis"

# Folders in reading order, with the title that site and map give them; "" holds what everything else builds on.
# The library is what these hold; a folder in one of them belongs to it (cohort/phantom to cohort).
LIBRARY = {
    "": "Foundations",
    "cohort": "Cohort: from CT and outlines to a table of lesions",
    "method": "Method: the networks and the three phases",
    "study": "Study: the experiment and what it gave",
    "use": "Use: explore, predict, the command",
}
AROUND = {
    "tutorials": "Tutorials",
    "paper": "Results: what we found, and the paper's tables",
    "cards": "Cards: model, data, attacks, speed",
}
FOLDERS = LIBRARY | AROUND

# Imports leave a choice; where they do, this decides (a folder stands for what is in it), and after it the name.
PREFERRED = """
    tutorials/one_sitting tutorials/look_inside tutorials/own_ct tutorials/refusals
    cohort/manifest cohort/folds cohort/ct cohort/annotation cohort/roi cohort/healthy cohort/scan cohort/labels
    cohort/cases cohort/duplicates cohort/deidentify cohort/ownership cohort/case_files cohort/qc cohort/ingest
    cohort/example cohort/recipes cohort/joining cohort/sources cohort/phantom
    method/data method/models method/learner
    study/training study/run study/experiment study/evaluate study/codes
    use/explore use/predict use/cli
    paper/findings paper/why paper/scores paper/choices paper/reproduction
""".split()

MARKS = "<!-- notebooks: made by `make readme` -->", "<!-- notebooks end -->"


@dataclass(frozen=True)
class Notebook:
    """One notebook, read as JSON."""

    name: str  # path under nbs/ without the suffix, e.g. cohort/annotation/seg
    path: Path
    cells: list  # as stored, but each source is one string

    @cached_property
    def code(self) -> list:
        """The code cells."""
        return [c for c in self.cells if c["cell_type"] == "code"]

    @cached_property
    def module(self) -> str | None:
        """What it exports to, e.g. cohort.annotation.seg; None if it exports nothing."""
        found = (re.search(r"^#\|\s*default_exp\s+(\S+)", c["source"], re.M) for c in self.code)
        return next((m[1] for m in found if m), None)

    @cached_property
    def exported(self) -> list[str]:
        """Sources of the exported cells, without directives."""
        return [without_directives(c["source"]) for c in self.code if is_exported(c["source"])]

    @cached_property
    def title(self) -> str:
        """The first heading."""
        return self._head(r"^# +(.+)$")

    @cached_property
    def subtitle(self) -> str:
        """The quoted line under the title, which is the module's docstring."""
        return self._head(r"^> +(.+)$")

    @property
    def folder(self) -> str:
        """Folder under nbs/, '' for the top."""
        return "/".join(self.name.split("/")[:-1])

    @property
    def room(self) -> str:
        """The uppermost folder, a key of `FOLDERS`."""
        return self.folder.split("/")[0]

    def imports(self, sources: Iterable[str] | None = None) -> set[str]:  # sources: of cells; None: the exported ones
        """Full names of what is imported, those inside functions included: `from a import b` gives a and a.b."""
        sources = self.exported if sources is None else sources
        module = f"{PACKAGE}.{self.module}" if self.module else ""
        return set().union(*(imported(parse(source, self.name), module) for source in sources))

    def _head(self, pattern):
        text = "\n".join(c["source"] for c in self.cells if c["cell_type"] == "markdown")
        found = re.search(pattern, text, re.M)
        return found[1].strip() if found else ""


def is_exported(source: str) -> bool:
    """Whether a cell goes into the module."""
    return bool(re.search(r"^#\|\s*export(s|i)?\b", source, re.M))


def without_directives(source: str) -> str:
    """A cell's source without `#|` lines."""
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M)


def parse(source: str, where: str = "a cell") -> ast.Module:
    """The syntax tree of a cell; lines that only IPython understands become comments."""
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M))
    except SyntaxError as e:
        raise ValueError(f"{where}: cannot parse {source.splitlines()[0]!r} ...: {e}") from None


def imported(tree: ast.AST, module: str = "") -> set[str]:
    """Full names that a tree imports anywhere; `module` is its own full name, from which relative imports count."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def _absolute(node, module):
    if not node.level:
        return node.module
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def find(root: Path = ROOT) -> dict[str, Notebook]:
    """All notebooks of a checkout by name; hidden folders and those that start with _ are left out."""
    nbs = root / "nbs"
    paths = [p for p in sorted(nbs.rglob("*.ipynb")) if not re.search(r"(^|/)[._]", p.relative_to(nbs).as_posix())]
    return {notebook.name: notebook for notebook in (read(p, nbs) for p in paths)}


def read(path: Path, nbs: Path) -> Notebook:
    """One notebook of the folder `nbs`."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
    return Notebook(path.relative_to(nbs).with_suffix("").as_posix(), path, cells)


def uses(notebooks: dict[str, Notebook]) -> dict[str, set[str]]:
    """For each notebook, the names of those whose modules its exported cells import."""
    by_module = {f"{PACKAGE}.{n.module}": name for name, n in notebooks.items() if n.module}
    found = {name: {by_module[i] for i in n.imports() if i in by_module} for name, n in notebooks.items()}
    return {name: found[name] - {name} for name in notebooks}


def in_order(notebooks: dict[str, Notebook]) -> list[str]:
    """Names in reading order: room by room, in a room a notebook after those it uses, else as `PREFERRED` has it.

    Numbered notebooks, as older trees have them, come in the order of their numbers. Raises ValueError for a folder
    that `FOLDERS` does not list.
    """
    if any(re.match(r"\d", name) for name in notebooks):
        return sorted(notebooks)
    if lost := sorted(name for name, n in notebooks.items() if n.room not in FOLDERS):
        raise ValueError(f"no place for {', '.join(lost)}: list its folder in FOLDERS of tools/notebooks.py")
    used = uses(notebooks)
    ordered = ["index"] if "index" in notebooks else []
    for room in FOLDERS:
        names = {name for name, n in notebooks.items() if n.room == room and name != "index"}
        ordered += _sorted_by_use(names, used)
    return ordered


def _sorted_by_use(names, used):
    ordered, visited = [], set()

    def visit(name):
        if name not in visited:  # in a circle of imports, the first one met comes last
            visited.add(name)
            for other in sorted(used[name] & names, key=_preference):
                visit(other)
            ordered.append(name)

    for name in sorted(names, key=_preference):
        visit(name)
    return ordered


def _preference(name):
    places = [i for i, p in enumerate(PREFERRED) if name == p or name.startswith(f"{p}/")]
    return min(places, default=len(PREFERRED)), name


def forward(notebooks: dict[str, Notebook]) -> list[tuple[str, str]]:
    """Imports of exported cells that do not go back in reading order, as (notebook, notebook that it imports)."""
    place = {name: i for i, name in enumerate(in_order(notebooks))}
    return [(n, m) for n, ms in uses(notebooks).items() for m in sorted(ms) if place[m] >= place[n]]


def map_of(notebooks: dict[str, Notebook], base: str = "nbs/") -> str:
    """Markdown: for every folder a heading and a table of its notebooks with their subtitles."""
    lines = []
    for room, title in FOLDERS.items():
        names = [n for n in in_order(notebooks) if notebooks[n].room == room]
        if names:
            lines += ["", f"**{title}**", "", "| notebook | owns |", "|---|---|"]
            lines += [f"| [`{n}`]({base}{n}.ipynb) | {notebooks[n].subtitle} |" for n in names]
    return "\n".join(lines[1:])


def with_map(text: str, table: str) -> str:
    """`text` with what lies between the markers replaced; raises ValueError if they are missing."""
    start, end = MARKS
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the lines {start} and {end} are to stand once")
    before, rest = text.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def main(args: list[str]) -> None:
    """The command line, see the top."""
    notebooks = find()
    if args[:1] == ["--map"]:
        path = Path(args[1])
        path.write_text(with_map(path.read_text(encoding="utf-8"), map_of(notebooks)), encoding="utf-8")
    else:
        for name in in_order(notebooks):
            print(f"{name:35}{notebooks[name].title}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as e:
        sys.exit(f"notebooks: {e}")
