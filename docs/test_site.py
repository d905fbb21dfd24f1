"""The built site in a browser, as a reader meets it: `make docs` first. Needs Chromium or Chrome; CHROMIUM may name it.

Nothing outside the folder may be asked for, so a page that leans on a CDN fails here, with or without a network.
"""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pages
import pytest
from browsing import DESK, PHONE, watch
from pages import ROOT, notebooks

SITE = ROOT / "_docs"
NOTEBOOKS = notebooks.find()


class Links(HTMLParser):
    "What a page points to, and the places in it that can be pointed to"

    def __init__(self, text):
        super().__init__()
        self.to, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.to |= {attrs[k] for k in ("href", "src") if attrs.get(k)}


def html_files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.html") if "_static" not in p.parts)


def broken_links(folder):
    "Links of every page that lead to no file or no place within `folder`"
    read = {name: Links((folder / name).read_text(encoding="utf-8")) for name in html_files(folder)}
    found = []
    for name, links in read.items():
        for link in sorted(links.to):
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target, place = urldefrag(urljoin(name, link))
            target = unquote(urlsplit(target).path)
            if not (folder / target).is_file():
                found.append(f"{name}: {link} leads nowhere")
            elif place and target in read and unquote(place) not in read[target].ids:
                found.append(f"{name}: {link} has no such place")
    return found


def problems(context, url):
    "What goes wrong when `url` is opened: requests, console, pictures, formulas, and its width on a desk and a phone"
    with context.new_page() as page:
        found = watch(page, url)
        page.goto(url, wait_until="load")
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container", state="attached")
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        found += [
            f"picture does not load: {s}"
            for s in page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        ]
        found += [
            f"formula: {t}"
            for t in page.evaluate(
                "[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent)"
            )
        ]
        for size in (DESK, PHONE):
            page.set_viewport_size(size)
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > size["width"]:
                found.append(f"{wide} pixels wide on a screen of {size['width']}")
        return found


# -- the site ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", html_files(SITE) or ["index.html"])
def test_page(desk, base, name):
    assert not problems(desk, base + name)


def test_links(base):
    assert not broken_links(SITE)


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_every_notebook_has_its_page_with_its_pictures(name):
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    shown = [c for c in NOTEBOOKS[name].code if not c["source"].startswith("#| hide")]
    outputs = [o.get("data", {}) for c in shown for o in c["outputs"]]
    pictures = sum(any(kind.startswith("image/") for kind in data) for data in outputs)
    assert text.count("<img") >= pictures
    assert not re.findall(r'<img[^>]* alt="[^"]*\.(?:png|svg|jpe?g)"', text), "a picture without words"
    assert "colab.research.google.com" in text
    assert "Not a medical device" in text
    assert "#|" not in text.split("<article")[1].split("</article>")[0].replace("<code", "`")


@pytest.mark.parametrize(
    "query, page",
    [
        ("MixtureLabels", "method/mixture.html"),
        ("disentangle_learner", "method/disentangle.html"),
        ("load_manifest", "cohort/manifest.html"),
        ("hemangioma", "cohort/phantom/lesions.html"),
    ],
)
def test_search_finds(browser, base, query, page):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(f"{base}search.html?q={query}")
        tab.wait_for_selector("#search-results li a")
        tab.wait_for_function(
            "!document.querySelector('#search-progress')?.textContent.includes('Searching')", timeout=10_000
        )
        assert any(
            urlsplit(a.get_attribute("href")).path.endswith(page) for a in tab.locator("#search-results li a").all()
        )


def test_dark_mode(browser, base):
    "As the system has it, and by the button"
    with browser.new_context(color_scheme="dark", viewport=DESK) as context:
        tab = context.new_page()
        tab.goto(base + "index.html")
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.evaluate("document.querySelector('.theme-switch-button').click()")
        modes = {tab.evaluate("document.documentElement.dataset.mode")}
        for mode in ("light", "dark"):
            tab.evaluate(f"document.querySelector('.theme-change-button[data-mode={mode}]')?.click()")
            modes.add(tab.evaluate("document.documentElement.dataset.theme"))
    with browser.new_context(color_scheme="light", viewport=DESK) as context:
        tab = context.new_page()
        tab.goto(base + "index.html")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert {"light", "dark"} <= modes


def test_names_lead_to_their_api(browser, base):
    with browser.new_context(viewport=DESK) as context:
        tab = context.new_page()
        tab.goto(base + "index.html")
        tab.goto(base + "method/disentangle.html")
        link = tab.locator("article p a:has(code)", has_text="Disentangler").first
        link.click()
        assert tab.url.endswith("method/disentangle.html#liverdis.method.disentangle.Disentangler")
        assert tab.locator("[id='liverdis.method.disentangle.Disentangler']").is_visible()


def test_front_page_says_what_this_is(browser, base):
    "Picture, commands and table stand on it, the picture in the first screenful"
    with browser.new_context(viewport=DESK) as context:
        tab = context.new_page()
        tab.goto(base + "index.html")
        picture = tab.locator("article img").first.bounding_box()
        assert picture["y"] + picture["height"] / 2 < DESK["height"]
        text = tab.locator("article").inner_text()
        assert all(part in text for part in ("Not a medical device", "make reproduce", "make test", "75.0 ± 5.8"))


# -- the checks can fail -----------------------------------------------------------------------------------------------

SOUND = "<!doctype html><title>t</title><link rel=icon href=data:,><p id=here>text <a href=#here>link</a>"


@pytest.mark.parametrize("html, said", [
    ("<img src=missing.png>", "missing.png"),
    ("<img src=data:image/png;base64,AAAA>", "picture does not load"),
    ("<script>console.error('oh')</script>", "console: oh"),
    ("<script>throw new Error('thrown')</script>", "thrown"),
    ("<script src=https://example.org/a.js></script>", "from outside"),
    ("<div style='width:2000px'>wide</div>", "pixels wide"),
    ("<mjx-merror>no such macro</mjx-merror>", "formula"),
])  # fmt: skip
def test_page_check_can_fail(desk, serve, tmp_path, html, said):
    (tmp_path / "a.html").write_text(SOUND, encoding="utf-8")
    (tmp_path / "b.html").write_text(SOUND + html, encoding="utf-8")
    url = serve(tmp_path)
    assert not problems(desk, url + "a.html")
    assert any(said in p for p in problems(desk, url + "b.html"))


def test_link_check_can_fail(tmp_path):
    (tmp_path / "a.html").write_text(SOUND, encoding="utf-8")
    assert not broken_links(tmp_path)
    (tmp_path / "b.html").write_text(SOUND + "<a href=c.html>c</a><a href=a.html#there>there</a>", encoding="utf-8")
    assert broken_links(tmp_path) == ["b.html: a.html#there has no such place", "b.html: c.html leads nowhere"]


def notebook(name, code=""):
    "A notebook that exports `code`"
    cells = [{"cell_type": "code", "source": f"#| default_exp {name.replace('/', '.')}"}]
    return notebooks.Notebook(name, None, [*cells, {"cell_type": "code", "source": f"#| export\n{code}"}])


def made_up(**code):
    "Notebooks by name, an underscore in it for a slash"
    return {n.replace("_", "/"): notebook(n.replace("_", "/"), c) for n, c in code.items()}


def test_sections_follow_from_folders():
    found = made_up(index="", cohort_roi="from liverdis.cohort.ct import f", cohort_ct="", tutorials_own="", core="")
    order = {title: names for title, names in pages.sections(found).items() if names}
    assert list(order.values()) == [["tutorials/own"], ["core"], ["cohort/ct", "cohort/roi"]]
    with pytest.raises(ValueError, match="no place for talks/slides"):
        pages.sections(made_up(talks_slides=""))


def test_names_that_two_modules_have():
    "Full and half names lead to either; the bare name to that of the notebook itself, or to what it imports"
    one = "def draw(): pass\ndef only(): pass"
    books = made_up(use_one=one, use_two="def draw(): pass", use_three="from liverdis.use.two import draw")
    names = pages.names_of(books)
    assert names["only"] == names["one.only"] == ("py:obj", "liverdis.use.one.only")
    assert "draw" not in names and "one" not in names
    assert names["two.draw"] == names["use.two.draw"] == ("py:obj", "liverdis.use.two.draw")
    assert names["use.one"] == names["liverdis.use.one"] == ("doc", "/use/one")
    local = {name: pages.local_names(book, books)["draw"][1] for name, book in books.items()}
    assert local == {
        "use/one": "liverdis.use.one.draw",
        "use/two": "liverdis.use.two.draw",
        "use/three": "liverdis.use.two.draw",
    }
