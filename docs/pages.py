"""Make the pages of the site from the notebooks: nbs/ is read through nbdev's processors and written to _proc/, where Sphinx finds it.

What nbdev writes for Quarto is written for MyST here: `show_doc` becomes a Python directive with types and the comments of the parameters,
a name in back-ticks becomes a link to it, a work that references.bib knows becomes a citation. Nothing is executed.
"""

import ast
import fnmatch
import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, nbglob
from nbdev.process import NBProcessor, Processor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi
from pybtex.database import parse_file

ROOT = Path(__file__).parent.parent

# The one place for the order of the site: a section takes the notebooks that match its patterns, in the order of the patterns and then by name.
# A notebook that no pattern takes stops the build. The sidebar shows a notebook's own title, or the text before <name>.
SECTIONS = {
    "The story": [
        "Tables and figures, re-run <paper/reproduction>",
        "How hard the phantom is <paper/calibration>",
        "The printed numbers, audited <23_paper>",
        "paper/*",
    ],
    "How to": ["howto/*"],
    "The library": ["[0-9]*"],
    "Cards": ["cards/completeness", "cards/*"],
}
EXTRA = {"About": ["changelog", "contributing", "references", "genindex"]}


def page_of(name):
    "Name of a notebook's page: as nbdev names it, without the number, so that renumbering breaks no link"
    path = Path(name)
    return path.with_name(re.sub(r"^\d+[a-z\d]*_", "", path.name.lower())).as_posix()


def sections(names):
    "For each section, names of notebooks and the titles that the sidebar gives them, or None. Raises ValueError for a notebook without a place"
    left, found = [n for n in sorted(names) if n != "index"], {}
    for section, patterns in SECTIONS.items():
        found[section] = {}
        for title, pattern in (re.fullmatch(r"(?:(.+) <)?([^<>]+)>?", p).groups() for p in patterns):
            taken = fnmatch.filter([n for n in left if n.count("/") == pattern.count("/")], pattern)
            found[section] |= dict.fromkeys(taken, title)
            left = [n for n in left if n not in taken]
    if left:
        raise ValueError(f"no section of the site takes {', '.join(left)}: add it to SECTIONS in docs/pages.py")
    pages = [page_of(n) for ns in found.values() for n in ns]
    if twice := sorted({p for p in pages if pages.count(p) > 1}):
        raise ValueError(f"two notebooks would be the page {', '.join(twice)}")
    return found


# -- the API of what a cell defines ------------------------------------------------------------------------------------

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def public(body):
    return [node for node in body if isinstance(node, DEFS) and not node.name.startswith("_")]


def plain(text):
    "Text as Markdown that shows it as it is; what stands in back-ticks stays code"
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<\[\]|$])", r"\\\1", part)
        for part in re.split(r"(`[^`\n]*`)", text)
    )


class Qualified(ast.NodeTransformer):
    "The library's own classes by their full name, `~` for Sphinx to show the last part: two modules may each have a `Patient`"

    def __init__(self, space):
        self.space = space

    def visit_Name(self, node):
        found = self.space.get(node.id)
        own = (
            isinstance(found, type)
            and found.__module__.startswith(f"{get_config().lib_name}.")
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


def api(node, obj, fence=6):
    "What MyST shows of a definition: signature, docstring, parameters with their comments, and the methods of a class"
    is_class, decorators = isinstance(node, ast.ClassDef), [ast.unparse(d) for d in node.decorator_list]
    init = next((m for m in node.body if isinstance(m, DEFS) and m.name == "__init__"), None) if is_class else node
    is_enum = is_class and any("Enum" in ast.unparse(b) for b in node.bases)
    is_dataclass = is_class and any("dataclass" in d for d in decorators)
    rows = list(fields_of(node) if is_dataclass else parameters_of(init) if init else [])
    try:
        comments = (
            {}
            if is_enum or (is_class and not init and not is_dataclass)
            else docments(obj if is_class else inspect.unwrap(obj), args_kwargs=True)
        )
    except (TypeError, OSError):
        comments = {}
    shown = [f"{n}{f': {t}' if t else ''}{'' if d is None else f' = {d}' if t else f'={d}'}" for n, t, d, _ in rows]
    returns = getattr(node, "returns", None) if not is_class else None
    kind = "class" if is_class else "property" if "property" in decorators else "method" if fence < 6 else "function"
    arrow = f" -> {ast.unparse(returns)}" if returns and kind != "property" else ""
    lines = [
        ":" * fence
        + f"{{py:{kind}}} {node.name}"
        + ("" if kind == "property" or is_enum else f"({', '.join(shown)}){arrow}")
    ]
    lines += [f":{d}:" for d in ("classmethod", "staticmethod") if d in decorators]
    if kind == "property" and returns:
        lines += [f":type: {ast.unparse(returns)}"]
    lines += ["", plain(inspect.cleandoc(ast.get_docstring(node) or "")), ""]
    if is_enum:
        lines += [
            "One of " + ", ".join(f"`{ast.unparse(a.value)}`" for a in node.body if isinstance(a, ast.Assign)),
            "",
        ]
    for name, t, _, told in rows:
        told = told or comments.get(name.lstrip("*")) or ""
        lines += [f":param {name.replace('*', chr(92) + '*')}: {plain(' '.join(told.split()))}"] * bool(told or t)
        lines += [f":type {name.replace('*', chr(92) + '*')}: {t}"] * bool(t)
    if told := comments.get("return"):
        lines += [f":returns: {plain(' '.join(told.split()))}"]
    if is_class:
        for m in public(node.body):
            if ast.get_docstring(m):
                member = inspect.getattr_static(obj, m.name)
                lines += ["", api(m, getattr(member, "fget", None) or getattr(member, "__func__", member), fence - 1)]
    return "\n".join([*lines, ":" * fence])


def exported(cell):
    return cell.cell_type == "code" and {"export", "exports", "exporti"} & cell.directives_.keys()


def default_exp(nb):
    return next(
        (
            m[1]
            for c in nb.cells
            if c.cell_type == "code" and (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M))
        ),
        None,
    )


class Api(Processor):
    "Before each exported cell the API of what it defines, and the cell itself folded; imports alone are left out"

    def begin(self):
        module = next(
            (
                c.directives_["default_exp"][0]
                for c in self.nb.cells
                if c.cell_type == "code" and "default_exp" in c.directives_
            ),
            None,
        )
        cells = []
        for cell in self.nb.cells:
            if not exported(cell):
                if not (cell.cell_type == "code" and "default_exp" in cell.directives_):
                    cells.append(cell)
                continue
            body = ast.parse(cell.source).body
            if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body):
                continue
            for node in public(body):
                space = vars(import_module(f"{get_config().lib_name}.{module}"))
                cells.append(mk_cell(api(qualify(node, space), space[node.name]), "markdown"))
            if any(isinstance(n, DEFS) for n in body):
                cell.metadata["tags"] = ["hide-input"]
            cells.append(cell)
        if module:
            cells.insert(1, mk_cell(f":::{{py:module}} {get_config().lib_name}.{module}\n:::", "markdown"))
        self.nb.cells = cells
        for c in cells:
            c.directives_ = getattr(c, "directives_", {})


# -- text: links and citations -------------------------------------------------------------------------------------------


def names_of(notebooks):
    "Role and target of every name that may stand in back-ticks: modules, definitions and methods. One with two meanings has none, nor has a bare `paper`"
    found, modules, lib = {}, {}, get_config().lib_name
    for name, nb in notebooks.items():
        if not (module := default_exp(nb)):
            continue
        modules |= {module: None, f"{lib}.{module}": ("doc", "/" + page_of(name))}
        for cell in nb.cells:
            if cell.cell_type == "code" and re.search(r"^#\|\s*exports?\b", cell.source, re.M):
                for node in public(ast.parse(re.sub(r"^[%!].*", "", cell.source, flags=re.M)).body):
                    members = (
                        [f".{m.name}" for m in public(node.body) if ast.get_docstring(m)]
                        if isinstance(node, ast.ClassDef)
                        else []
                    )
                    for qualified in (node.name + m for m in ["", *members]):
                        for alias in (qualified, f"{module}.{qualified}", f"{lib}.{module}.{qualified}"):
                            found.setdefault(alias, set()).add(("py:obj", f"{lib}.{module}.{qualified}"))
    return {k: v for k, v in ({k: next(iter(v)) for k, v in found.items() if len(v) == 1} | modules).items() if v}


def slug(anchor):
    "`#Phase-1:-a-classifier`, as Jupyter has it, as the site has it"
    return "#" * bool(anchor) + re.sub(r"[^\w-]", "", anchor.lower())


def citations(bib):
    "For every work in references.bib, what names it in a text: its address, or surname and year with no full stop between"
    for key, entry in parse_file(bib, bib_format="bibtex").entries.items():
        named = [rf"\[[^\]]+\]\({re.escape(entry.fields['url'])}\)"] if "url" in entry.fields else []
        named += [rf"doi:{re.escape(entry.fields['doi'])}"] if "doi" in entry.fields else []
        if people := entry.persons.get("author"):
            named.append(
                rf"\b{re.escape(' '.join(people[0].last_names))}\b(?:[^.;:|`]|et al\.){{0,90}}?\b{entry.fields['year']}\b"
            )
        yield key, re.compile("|".join(named))


class Text:
    "Markdown of a notebook as Markdown of the site"

    def __init__(self, names, works):
        self.names, self.works, self.elsewhere, self.cited = names, list(works), NbdevLookup(strip_libs="fastai"), set()

    def linked(self, m):
        name = m[1]
        if name in self.names:
            role, target = self.names[name]
            return f"{{{role}}}`{name}{m[2] or ''} <{target}>`"
        if re.match(r"[A-Z][a-z]+[A-Z]?\w*$", name) and (url := self.elsewhere.doc(name)):
            return f"[`{name}`]({url})"
        return m[0]

    def __call__(self, text):
        text = re.sub(r"\[!\[Open in Colab\]\(\S+?\)\]\((\S+?)\)", r"[Open in Colab](\1){.colab}", text)
        text = re.sub(
            r"\]\(((?:\.\./|\w+/)*)([\w-]+\.ipynb)(#[^)]*)?\)",
            lambda m: f"]({m[1]}{page_of(m[2])}{slug(m[3] or '')})",
            text,
        )
        parts = re.split(r"(^```.*?^```|\$\$.*?\$\$)", text, flags=re.M | re.S)
        for i in range(0, len(parts), 2):
            for key, named in self.works:
                parts[i], n = named.subn(lambda m: f"{m[0]} {{cite:p}}`{key}`", parts[i])
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


def main(dest):
    cfg = get_config(path=ROOT)
    files = {p.relative_to(cfg.nbs_path).with_suffix("").as_posix(): p for p in map(Path, nbglob(cfg.nbs_path))}
    order = sections(files)
    shutil.rmtree(dest, ignore_errors=True)
    notebooks = {name: read_nb(path) for name, path in files.items()}
    text = Text(names_of(notebooks), citations(ROOT / "docs/references.bib"))
    for name, nb in notebooks.items():
        nb.metadata.pop("widgets", None)
        NBProcessor(
            nb=nb,
            procs=[
                strip_ansi,
                hide_line,
                filter_stream_,
                rm_header_dash,
                hide_,
                Api,
                tags,
                clean_magics,
                no_widgets,
                text.cell,
            ],
        ).process()
        if name == "index":
            trees = {
                k: [f"{title} <{page_of(n)}>" if title else page_of(n) for n, title in v.items()]
                for k, v in order.items()
            } | EXTRA
            nb.cells += [
                mk_cell("\n".join(["```{toctree}", f":caption: {title}", ":hidden:", *pages, "```"]), "markdown")
                for title, pages in trees.items()
                if pages
            ]
        target = dest / f"{page_of(name)}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, target)
    shutil.copytree(cfg.nbs_path / "images", dest / "images")
    for name in ("changelog", "contributing"):
        (dest / f"{name}.md").write_text(
            text((ROOT / f"{name.upper()}.md").read_text(encoding="utf-8")), encoding="utf-8"
        )
    (dest / "references.md").write_text("# References\n\n```{bibliography}\n:all:\n```\n", encoding="utf-8")
    print(f"{len(notebooks)} notebooks, {len(text.cited)} works cited")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ImportError, ValueError) as e:
        sys.exit(f"docs: {e}")
