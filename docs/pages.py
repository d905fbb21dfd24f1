"""Make the pages of the site: nbs/ is read through nbdev's processors and written to _proc/ for Sphinx.

What nbdev writes for Quarto is written for MyST here: `show_doc` becomes a Python directive with types and the comments
of the parameters, a name in back-ticks becomes a link to it, a work that references.bib knows becomes a citation. A
page lies where its notebook lies. Nothing is executed.
"""

import ast
import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi
from pybtex.database import parse_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import notebooks
from notebooks import PACKAGE, ROOT
from play_page import write_play
from runtime import Unavailable

# The story first, then the library room by room as tools/notebooks.py has it, then the cards.
FOLDERS = ["tutorials", "paper", *notebooks.LIBRARY, "cards"]
TRY, ABOUT = ["play"], ["changelog", "contributing", "references", "genindex"]


def sections(found):
    "For each section of the sidebar, its notebooks in reading order. ValueError for a folder without a place"
    order = [n for n in notebooks.in_order(found) if n != "index"]
    if left := set(notebooks.FOLDERS) - set(FOLDERS):
        raise ValueError(f"the site has no section for {', '.join(sorted(left))}: see FOLDERS in docs/pages.py")
    return {notebooks.FOLDERS[f]: [n for n in order if found[n].room == f] for f in FOLDERS}


# -- the API of what a cell defines ------------------------------------------------------------------------------------

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def public(body):
    return [node for node in body if isinstance(node, DEFS) and not node.name.startswith("_")]


def methods(node, classes):
    "The methods with a docstring of a class, those included that it has from private classes of the same notebook"
    bases = [classes[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id.startswith("_") and b.id in classes]
    own = [m for m in public(node.body) if ast.get_docstring(m)]
    names = {m.name for m in own}
    return own + [m for base in bases for m in methods(base, classes) if m.name not in names]


def classes_of(sources):
    "The classes that some cells define, by name"
    return {n.name: n for source in sources for n in notebooks.parse(source).body if isinstance(n, ast.ClassDef)}


def plain(text):
    "Text as Markdown that shows it as it is; what stands in back-ticks stays code"
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<\[\]|$])", r"\\\1", part)
        for part in re.split(r"(`[^`\n]*`)", text)
    )


class Qualified(ast.NodeTransformer):
    "The library's own classes by full name, as two modules may each have a `Patient`; of `~a.b` Sphinx shows b"

    def __init__(self, space):
        self.space = space

    def visit_Name(self, node):
        found = self.space.get(node.id)
        own = (
            isinstance(found, type)
            and found.__module__.startswith(f"{PACKAGE}.")
            and not found.__name__.startswith("_")
        )
        return ast.parse(f"~{found.__module__}.{found.__qualname__}", mode="eval").body if own else node


def qualify(node, space):
    "The same definition, every annotation qualified"
    for n in ast.walk(node):
        for field in ("annotation", "returns"):
            if isinstance(getattr(n, field, None), ast.AST):
                setattr(n, field, Qualified(space).visit(getattr(n, field)))
    return node


def declared(annotation):
    "Type and help of an annotation; Typer's `Annotated[type, Option(help=...)]` holds both"
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated"):
        kind, *rest = annotation.slice.elts
        told = [
            k.value.value
            for call in rest
            if isinstance(call, ast.Call)
            for k in call.keywords
            if k.arg == "help" and isinstance(k.value, ast.Constant)
        ]
        return ast.unparse(kind), "".join(told)
    return (ast.unparse(annotation) if annotation else ""), ""


def fields_of(node):
    "The fields of a dataclass as (name, type, default, help); a field made by a call with a text says in it why"
    for f in node.body:
        if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_"):
            kind, told = declared(f.annotation)
            value = f.value
            if isinstance(value, ast.Call) and value.args:
                if isinstance(value.args[-1], ast.Constant) and isinstance(value.args[-1].value, str):
                    told = f"{ast.unparse(value.func).strip('_')}: {value.args[-1].value}"
                value = value.args[0]
            yield f.target.id, kind, ast.unparse(value) if value else None, told


def parameters_of(node):
    "The parameters of a function as (name with stars, type, default, help)"
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    rows = [("", arg, default) for arg, default in zip(positional, defaults)]
    rows += [("*", a.vararg, None)] * bool(a.vararg)
    rows += [("", arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    rows += [("**", a.kwarg, None)] * bool(a.kwarg)
    for stars, arg, default in rows:
        if arg.arg not in ("self", "cls"):
            kind, told = declared(arg.annotation)
            yield stars + arg.arg, kind, ast.unparse(default) if default else None, told


def api(node, obj, classes, fence=6):
    "What MyST shows of a definition: signature, docstring, parameters with their comments, and the methods of a class"
    is_class, decorators = isinstance(node, ast.ClassDef), [ast.unparse(d) for d in node.decorator_list]
    init = next((m for m in node.body if isinstance(m, DEFS) and m.name == "__init__"), None) if is_class else node
    is_dataclass = is_class and any("dataclass" in d for d in decorators)
    rows = list(fields_of(node) if is_dataclass else parameters_of(init) if init else [])
    try:
        comments = (
            {}
            if is_class and not init and not is_dataclass
            else docments(obj if is_class else inspect.unwrap(obj), args_kwargs=True)
        )
    except (TypeError, OSError):
        comments = {}
    shown = [f"{n}{f': {t}' if t else ''}{'' if d is None else f' = {d}' if t else f'={d}'}" for n, t, d, _ in rows]
    returns = getattr(node, "returns", None) if not is_class else None
    kind = "class" if is_class else "property" if "property" in decorators else "method" if fence < 6 else "function"
    arrow = f" -> {ast.unparse(returns)}" if returns and kind != "property" else ""
    lines = [
        ":" * fence + f"{{py:{kind}}} {node.name}" + ("" if kind == "property" else f"({', '.join(shown)}){arrow}")
    ]
    lines += [f":{d}:" for d in ("classmethod", "staticmethod") if d in decorators]
    if kind == "property" and returns:
        lines += [f":type: {ast.unparse(returns)}"]
    lines += ["", plain(inspect.cleandoc(ast.get_docstring(node) or "")), ""]
    for name, t, _, told in rows:
        told = told or comments.get(name.lstrip("*")) or ""
        lines += [f":param {name.replace('*', chr(92) + '*')}: {plain(' '.join(told.split()))}"] * bool(told or t)
        lines += [f":type {name.replace('*', chr(92) + '*')}: {t}"] * bool(t)
    if told := comments.get("return"):
        lines += [f":returns: {plain(' '.join(told.split()))}"]
    if is_class:
        for m in methods(node, classes):
            member = inspect.getattr_static(obj, m.name)
            unwrapped = getattr(member, "fget", None) or getattr(member, "__func__", member)
            lines += ["", api(m, unwrapped, classes, fence - 1)]
    return "\n".join([*lines, ":" * fence])


def exported(cell):
    return cell.cell_type == "code" and {"export", "exports", "exporti"} & cell.directives_.keys()


class Api(Processor):
    "Before each exported cell the API of what it defines, and the cell itself folded; imports alone are left out"

    def begin(self):
        module, cells = self.nb.module, []
        self.classes = classes_of(cell.source for cell in self.nb.cells if exported(cell))
        for cell in self.nb.cells:
            if exported(cell):
                cells += self.shown(cell, module)
            elif not (cell.cell_type == "code" and "default_exp" in cell.directives_):
                cells.append(cell)
        if module:
            cells.insert(1, mk_cell(f":::{{py:module}} {PACKAGE}.{module}\n:::", "markdown"))
        self.nb.cells = cells
        for c in cells:
            c.directives_ = getattr(c, "directives_", {})

    def shown(self, cell, module):
        "The cells that stand for an exported cell"
        body = ast.parse(cell.source).body
        if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body):
            return []
        space = vars(import_module(f"{PACKAGE}.{module}"))
        if any(isinstance(n, DEFS) for n in body):
            cell.metadata["tags"] = ["hide-input"]
        return [*(mk_cell(api(qualify(n, space), space[n.name], self.classes), "markdown") for n in public(body)), cell]


# -- text: links and citations -----------------------------------------------------------------------------------------


def definitions(book):
    "Full names of what a notebook defines for others, by name: functions, classes, methods with a docstring"
    found, classes = {}, classes_of(book.exported)
    for source in book.exported:
        for node in public(notebooks.parse(source).body):
            members = methods(node, classes) if isinstance(node, ast.ClassDef) else []
            for name in [node.name, *(f"{node.name}.{m.name}" for m in members)]:
                found[name] = f"{PACKAGE}.{book.module}.{name}"
    return found


def names_of(books):
    """Role and target of every name that may stand in back-ticks anywhere: modules, definitions and methods.

    A name with two meanings has none here (`local_names` may give it one), nor has a module's last part, as in `paper`.
    """
    found, modules = {}, {}
    for book in (b for b in books.values() if b.module):
        module, leaf = book.module, book.module.split(".")[-1]
        page = ("doc", f"/{book.name}")
        modules |= {leaf: None, module: page if "." in module else None, f"{PACKAGE}.{module}": page}
        for name, full in definitions(book).items():
            for alias in {name, f"{leaf}.{name}", f"{module}.{name}", full}:
                found.setdefault(alias, set()).add(("py:obj", full))
    clear = {alias: next(iter(targets)) for alias, targets in found.items() if len(targets) == 1} | modules
    return {alias: target for alias, target in clear.items() if target}


def local_names(book, books):
    "What a name means in one notebook, whatever it means elsewhere: what its cells import, then what it defines"
    everything = {full: name for b in books.values() if b.module for name, full in definitions(b).items()}
    taken = {full for full in book.imports([c["source"] for c in book.code]) if full in everything}
    inside = [full for full in everything if full in taken or full.rpartition(".")[0] in taken]
    return {everything[full]: ("py:obj", full) for full in [*inside, *definitions(book).values()]}


def slug(anchor):
    "`#Phase-1:-a-classifier`, as Jupyter has it, as the site has it"
    return "#" * bool(anchor) + re.sub(r"[^\w-]", "", anchor.lower())


def citations(bib):
    "For every work in references.bib, what names it in a text: its address, or surname and year in one sentence"
    for key, entry in parse_file(bib, bib_format="bibtex").entries.items():
        named = [rf"\[[^\]]+\]\({re.escape(entry.fields['url'])}\)"] if "url" in entry.fields else []
        named += [rf"doi:{re.escape(entry.fields['doi'])}"] if "doi" in entry.fields else []
        if people := entry.persons.get("author"):
            surname = re.escape(" ".join(people[0].last_names))
            named.append(rf"\b{surname}\b(?:[^.;:|`]|et al\.){{0,90}}?\b{entry.fields['year']}\b")
        yield key, re.compile("|".join(named))


class Text:
    "Markdown of a notebook as Markdown of the site"

    def __init__(self, names, works):
        self.names, self.works, self.here, self.cited = names, list(works), {}, set()
        self.elsewhere = NbdevLookup(strip_libs="fastai")

    def linked(self, m):
        name = m[1]
        if found := self.here.get(name) or self.names.get(name):
            role, target = found
            return f"{{{role}}}`{name}{m[2] or ''} <{target}>`"
        if re.match(r"[A-Z][a-z]+[A-Z]?\w*$", name) and (url := self.elsewhere.doc(name)):
            return f"[`{name}`]({url})"
        return m[0]

    def __call__(self, text):
        text = re.sub(r"\[!\[Open in Colab\]\(\S+?\)\]\((\S+?)\)", r"[Open in Colab](\1){.colab}", text)
        text = re.sub(
            r"\]\(((?:(?:\.\./|\w+/)*[\w-]+\.ipynb)?)(#[^)]*)?\)",
            lambda m: f"]({m[1]}{slug(m[2] or '')})",
            text,
        )
        parts = re.split(r"(^```.*?^```|\$\$.*?\$\$)", text, flags=re.M | re.S)
        for i in range(0, len(parts), 2):
            for key, named in self.works:
                parts[i], n = named.subn(rf"\g<0> {{cite:p}}`{key}`", parts[i])
                self.cited |= {key} if n else set()
            parts[i] = re.sub(r"(?<![\[}`])`([A-Za-z][\w.]*)(\(\))?`(?![\]`])", self.linked, parts[i])
        return "".join(parts)

    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = self(cell.source)
        for out in cell.get("outputs", []):
            if "text/markdown" in out.get("data", {}):
                out["data"]["text/markdown"] = self("".join(out["data"]["text/markdown"]))


def tags(cell):
    "Quarto's cell options as MyST-NB's tags, and out of the code"
    if cell.cell_type == "code":
        if cell.directives_.get("echo:", [""])[0] == "false":
            cell.metadata["tags"] = ["remove-input"]
        cell.source = re.sub(r"\A(?:\s*#\|.*\n?)+", "", cell.source)


def no_widgets(cell):
    "A widget needs a kernel, and a page has none"
    if cell.cell_type == "code":
        cell["outputs"] = [
            o for o in cell.get("outputs", []) if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
        ]


class Alt:
    "For who cannot see the pictures of a page: what a cell says in `#| fig-alt`, or else the heading that it is under"

    def __init__(self):
        self.heading = ""

    def __call__(self, cell):
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ (.+)$", cell.source, re.M)
            self.heading = re.sub(r"[`$*]|\]\(.*?\)|\[", "", found[-1]) if found else self.heading
        elif any(k.startswith("image/") for o in cell.get("outputs", []) for k in o.get("data", {})):
            words = cell.directives_.get("fig-alt:", [f"Figure of the section: {self.heading}"])
            cell.metadata["mystnb"] = {"image": {"alt": " ".join(words)}}


PROCESSORS = [strip_ansi, hide_line, filter_stream_, rm_header_dash, hide_, Api, tags, clean_magics, no_widgets]


def page(book, text):
    "A notebook as MyST-NB reads it"
    nb = read_nb(book.path)
    nb.module = book.module
    nb.metadata.pop("widgets", None)
    NBProcessor(nb=nb, procs=[Alt(), *PROCESSORS, text.cell]).process()
    del nb["module"]
    return nb


def summary(nb):
    "What a page says of itself below its title, without signs"
    first = next(c.source for c in nb.cells if c.cell_type == "markdown")
    said = re.search(r"^> (.+)$", first, re.M)
    return re.sub(r"[`$*]|\]\(.*?\)|\[", "", said[1]) if said else ""


def toctree(title, pages):
    "A section of the sidebar"
    return mk_cell("\n".join(["```{toctree}", f":caption: {title}", ":hidden:", *pages, "```"]), "markdown")


def write_texts(dest, text):
    "The pages that are no notebooks"
    for name in ("changelog", "contributing"):
        body = (ROOT / f"{name.upper()}.md").read_text(encoding="utf-8").replace("](nbs/", "](")
        (dest / f"{name}.md").write_text(text(body), encoding="utf-8")
    (dest / "references.md").write_text("# References\n\n```{bibliography}\n:all:\n```\n", encoding="utf-8")


def main(dest):
    cfg = get_config(path=ROOT)
    books = notebooks.find(ROOT)
    shutil.rmtree(dest, ignore_errors=True)
    text = Text(names_of(books), citations(ROOT / "docs/references.bib"))
    for name, book in books.items():
        text.here = local_names(book, books)
        nb = page(book, text)
        nb.metadata["myst"] = {"html_meta": {"description": summary(nb)}}
        if name == "index":
            contents = {"Try it": TRY, **sections(books), "About": ABOUT}
            nb.cells += [toctree(title, pages) for title, pages in contents.items() if pages]
        target = dest / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, target)
    text.here = {}
    shutil.copytree(cfg.nbs_path / "images", dest / "images")
    write_texts(dest, text)
    write_play(dest, text)
    print(f"{len(books)} notebooks, {len(text.cited)} works cited")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ImportError, ValueError, Unavailable) as e:
        sys.exit(f"docs: {e}")
