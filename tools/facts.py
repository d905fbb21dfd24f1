"""Facts about the notebooks and the code around them, as a table: `python tools/facts.py [CHECKOUT] [--list]`.

`--list` also names what each fact counts. CHECKOUT may be an older tree with numbered notebooks in one folder.

A check cannot fail, for our purpose, if it is one of these:

- an `assert` or a fastcore `test_...` of constants alone, or with the same expression on both sides (unless it calls
  something: that two calls agree is worth a check);
- an `assert` of a tuple that is not empty, or `... or True`;
- in a notebook, the checks of a cell if nothing in them comes from the library, a file or a process: no name was
  imported from the library, defined in an exported cell, made from such a name, or handed to the library before;
- in tests/ and docs/, a `test_...` without assert, `raises`, `check=True`, or a call of a function that has one.

What it does not see: a check that calls the library, but not what it claims to check.
"""

import ast
import builtins
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import notebooks
from notebooks import PACKAGE, Notebook, parse, without_directives

COLUMNS = 120
DEFS = ast.FunctionDef, ast.AsyncFunctionDef
PYTHON = "tools", ".ci", "tests", "docs", "benchmarks"
LIBRARIES = PACKAGE, "benchmarks"
READERS = set("read_csv read_text read_bytes load loads open glob rglob iterdir exists is_file stat run".split())


@dataclass
class Fact:
    """One line of the table, and what it counts."""

    name: str
    value: str
    items: list[str] = field(default_factory=list)


# -- lines and cells ---------------------------------------------------------------------------------------------------


def long_lines(books: dict[str, Notebook], root: Path) -> tuple[list[str], int]:
    """Lines of code cells, and of Python files around the library, over `COLUMNS`; and how many lines there are."""
    sources = {name: [c["source"] for c in n.code] for name, n in books.items()}
    for folder in PYTHON:
        sources |= {p.relative_to(root).as_posix(): [p.read_text("utf-8")] for p in (root / folder).rglob("*.py")}
    lines = [(name, line) for name, texts in sources.items() for text in texts for line in text.splitlines()]
    return [f"{name}: {len(line)}: {line.strip()[:60]}" for name, line in lines if len(line) > COLUMNS], len(lines)


def cell_lengths(books: dict[str, Notebook]) -> list[tuple[int, str, str]]:
    """For each exported cell that does more than import: its lines that are not blank, its notebook, its first line."""
    return [
        (sum(bool(line.strip()) for line in source.splitlines()), name, source.strip().splitlines()[0])
        for name, n in books.items()
        for source in n.exported
        if not all(isinstance(node, ast.Import | ast.ImportFrom) for node in parse(source).body)
    ]


def prose(books: dict[str, Notebook]) -> list[tuple[float, str]]:
    """Words of text cells for each exported line, by notebook that exports."""
    found = []
    for name, n in books.items():
        lines = sum(bool(line.strip()) for source in n.exported for line in source.splitlines())
        words = sum(len(c["source"].split()) for c in n.cells if c["cell_type"] == "markdown")
        if lines:
            found.append((words / lines, name))
    return found


# -- types -------------------------------------------------------------------------------------------------------------


def public_functions(books: dict[str, Notebook]) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions of the library and public methods of its public classes, `__init__` among them."""
    for n in books.values():
        for source in n.exported:
            for node in parse(source).body:
                yield from _functions_of(node, n.module or n.name)


def _functions_of(node, where):
    if isinstance(node, DEFS) and not node.name.startswith("_"):
        yield f"{where}.{node.name}", node
    elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        for m in node.body:
            if isinstance(m, DEFS) and (m.name == "__init__" or not m.name.startswith("_")):
                yield f"{where}.{node.name}.{m.name}", m


def arguments(function: ast.FunctionDef) -> list[ast.arg]:
    """All arguments but self and cls."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [arg for arg in every if arg.arg not in ("self", "cls")]


def untyped(books: dict[str, Notebook]) -> tuple[list[str], int, list[str], int]:
    """Public arguments without a type and how many there are, then the same for what public functions return."""
    functions = list(public_functions(books))
    every = [(f"{where}({arg.arg})", arg.annotation) for where, f in functions for arg in arguments(f)]
    returns = [(where, f.returns) for where, f in functions if f.name != "__init__"]
    bare_arguments = [where for where, annotation in every if annotation is None]
    return bare_arguments, len(every), [where for where, a in returns if a is None], len(returns)


# -- checks that cannot fail -------------------------------------------------------------------------------------------


def is_check(node: ast.AST) -> bool:
    """Whether a statement asserts, or calls one of fastcore's `test_...`."""
    if isinstance(node, ast.Assert):
        return True
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and name_of(call.func).startswith("test_")


def name_of(node: ast.AST) -> str:
    """Last part of a name or attribute."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def empty_check(node: ast.AST) -> bool:
    """Whether a check holds whatever the program does, seen from itself alone."""
    if isinstance(node, ast.Expr):
        args = node.value.args
        return len(args) > 1 and (_same(args[0], args[1]) or all(_constant(a) for a in args[:2]))
    test = node.test
    if isinstance(test, ast.Tuple):
        return bool(test.elts)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(isinstance(v, ast.Constant) and bool(v.value) for v in test.values)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _same(test.left, test.comparators[0]) or _constant(test)
    return _constant(test) and not (isinstance(test, ast.Constant) and not test.value)


def _same(a, b):
    return ast.dump(a) == ast.dump(b) and not any(isinstance(n, ast.Call) for n in ast.walk(a))


def _constant(node):
    return not any(isinstance(n, ast.Name | ast.Call) for n in ast.walk(node))


def names_in(node: ast.AST) -> set[str]:
    """Every name that a piece of code reads or writes."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


class Origins:
    """Which names of a notebook hold something of the library or of a file, cell by cell."""

    def __init__(self):
        self.names, self.foreign = set(), set(dir(builtins))

    def see(self, node: ast.AST, exported: bool = False) -> None:
        """Take in one statement, and those in it."""
        for n in ast.walk(node):
            if isinstance(n, ast.Import | ast.ImportFrom):
                self._import(n)
        if isinstance(node, DEFS + (ast.ClassDef,)) and (exported or self.touches(node)):
            self.names.add(node.name)
        elif exported or self.touches(node):
            self.names |= _bound(node) - self.foreign

    def touches(self, node: ast.AST) -> bool:
        """Whether a piece of code uses one of these names, or reads a file."""
        calls = {name_of(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        return bool(names_in(node) & self.names or calls & READERS)

    def _import(self, node):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = alias.asname or (alias.name if module else alias.name.split(".")[0])
            ours = (module or alias.name).split(".")[0] in LIBRARIES
            (self.names if ours else self.foreign).add(name)


def _bound(node):
    "Names that a statement binds or hands to a call, and those whose methods it calls or whose parts it sets"
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    called = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    for n in ast.walk(node):
        if isinstance(n, DEFS + (ast.ClassDef,)):
            found.add(n.name)
        owner = n.func if isinstance(n, ast.Call) else n
        if isinstance(n, ast.Call):
            found |= set().union(*(names_in(arg) for arg in n.args)) - called
        changed = isinstance(n, ast.Call) or isinstance(getattr(n, "ctx", None), ast.Store)
        if changed and isinstance(owner, ast.Attribute | ast.Subscript) and isinstance(owner.value, ast.Name):
            found.add(owner.value.id)
    return found


def idle_checks(book: Notebook) -> list[str]:
    """Checks of a notebook that cannot fail."""
    origins, found = Origins(), []
    for cell in book.code:
        exported, checks = notebooks.is_exported(cell["source"]), []
        for statement in parse(without_directives(cell["source"]), book.name).body:
            origins.see(statement, exported)
            checks += [(n, origins.touches(n)) for n in ast.walk(statement) if is_check(n)]
        found += [f"{book.name}: {ast.unparse(c)[:90]}" for c, _ in checks if empty_check(c)]
        if checks and not exported and not any(touches for _, touches in checks):
            found.append(f"{book.name}: nothing of the library in: {ast.unparse(checks[0][0])[:90]}")
    return found


def idle_tests(root: Path) -> list[str]:
    """Tests in tests/ and docs/ that cannot fail."""
    paths = [p for folder in ("tests", "docs") for p in sorted((root / folder).glob("*.py"))]
    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in paths}
    functions = [(p, n) for p, tree in trees.items() for n in ast.walk(tree) if isinstance(n, DEFS)]
    strict = _strict_names([f for _, f in functions])
    found = []
    for p, f in functions:
        where = f"{p.relative_to(root)}: {f.name}"
        found += [f"{where}: {ast.unparse(n)[:90]}" for n in ast.walk(f) if is_check(n) and empty_check(n)]
        if f.name.startswith("test_") and f.name not in strict:
            found.append(f"{where} checks nothing")
    return found


def _strict_names(functions):
    "Names of functions that check something themselves, or call one that does"
    strict, before = set(), None
    while before != len(strict):
        before = len(strict)
        strict |= {f.name for f in functions if _checks(f, strict)}
    return strict


def _checks(function, strict):
    for n in ast.walk(function):
        if is_check(n) or isinstance(n, ast.Raise):
            return True
        if isinstance(n, ast.Call):
            checked = any(k.arg == "check" and getattr(k.value, "value", False) is True for k in n.keywords)
            if checked or name_of(n.func) in strict | {"raises", "warns", "fail"}:
                return True
    return False


# -- the table ---------------------------------------------------------------------------------------------------------


def facts(root: Path) -> list[Fact]:
    """All facts of a checkout."""
    books = notebooks.find(root)
    long, total = long_lines(books, root)
    lengths = sorted(cell_lengths(books), reverse=True)
    bare, n_arguments, bare_returns, n_returns = untyped(books)
    forward = notebooks.forward(books)
    idle = [line for n in books.values() for line in idle_checks(n)] + idle_tests(root)
    words = sorted(prose(books))
    over = [n for n in lengths if n[0] > 20]
    return [
        Fact(f"lines over {COLUMNS} columns", f"{len(long)} of {total} ({share(len(long), total)})", long),
        Fact("exported cells", f"{len(lengths)} in {len(words)} notebooks"),
        Fact("their lines, median", f"{statistics.median(n for n, *_ in lengths):g}"),
        Fact("their lines, longest", f"{lengths[0][0]}", [f"{n} lines: {nb}: {line[:70]}" for n, nb, line in over]),
        Fact("exported cells over 20 lines", f"{len(over)}"),
        Fact("public arguments typed", f"{share(n_arguments - len(bare), n_arguments)} of {n_arguments}", bare),
        Fact("public returns typed", f"{share(n_returns - len(bare_returns), n_returns)} of {n_returns}", bare_returns),
        Fact("imports that point forward", f"{len(forward)}", [f"{a} imports {b}" for a, b in forward]),
        Fact("checks that cannot fail", f"{len(idle)}", idle),
        Fact("words of prose an exported line", f"{prose_share(books):.1f}", [f"{w:.1f} {n}" for w, n in words]),
    ]


def share(part: int, whole: int) -> str:
    """In per cent; nothing of nothing is all of it."""
    return f"{100 * part / whole if whole else 100:.1f} %"


def prose_share(books: dict[str, Notebook]) -> float:
    """Words of text for each exported line, over all notebooks that export."""
    exporting = [n for n in books.values() if n.exported]
    words = sum(len(c["source"].split()) for n in exporting for c in n.cells if c["cell_type"] == "markdown")
    return words / sum(bool(line.strip()) for n in exporting for s in n.exported for line in s.splitlines())


def main(args: list[str]) -> None:
    """Print the table."""
    named = [a for a in args if not a.startswith("-")]
    for fact in facts(Path(named[0]).resolve() if named else notebooks.ROOT):
        print(f"{fact.name:34}{fact.value}")
        if "--list" in args:
            print("".join(f"    {item}\n" for item in fact.items), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
