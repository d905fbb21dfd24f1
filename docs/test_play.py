"""The page Play in a browser: the pictures that need no script, then the networks; keyboard, widths, failures."""

import io
import json
import os
import re
import tarfile
from subprocess import CalledProcessError, TimeoutExpired

import numpy as np
import play_page
import pytest
import runtime
from browsing import DESK, watch
from conftest import SITE
from PIL import Image

PLAY = SITE / "play"
FACTS = json.loads((play_page.DATA / "play.json").read_text(encoding="utf-8"))
CLASSES = list(FACTS["classes"])
LAST = len(FACTS["strip"]["asked"]) - 1


@pytest.fixture(scope="module")
def networks():
    "Skips where the site was built without them, unless they are required"
    if not (PLAY / runtime.FILES[0]).exists() and not os.environ.get("LIVERDIS_REQUIRE_RUNTIME"):
        pytest.skip("the site was built without onnxruntime-web: npm or the network was missing")


def closed(browser, base, **options):
    "The page before the click, and the list of what goes wrong"
    page = browser.new_context(**{"viewport": DESK, **options}).new_page()
    page.set_default_timeout(20_000)
    found = watch(page, base)
    page.goto(base + "play.html")
    return page, found


def opened(browser, base, **options):
    "The page with its networks loaded and the first image drawn"
    page, found = closed(browser, base, **options)
    page.click(".play-start")
    page.wait_for_selector(".play[data-redraws]")
    return page, found


@pytest.fixture(scope="module")
def page(browser, base, networks):
    "One page for all that the networks do; each test begins by choosing its mode"
    tab, found = opened(browser, base)
    yield tab
    assert not found
    tab.context.close()


def settled(page):
    "Waits until nothing is being drawn"
    page.wait_for_function("""() => new Promise(done => {
        const n = document.querySelector('.play').dataset.redraws
        setTimeout(() => done(n === document.querySelector('.play').dataset.redraws), 150)
    })""")  # fmt: skip


def decoded(page):
    "The decoded image (S,S), 0 to 255"
    read = "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data].filter((_, i) => i % 4 === 0)"
    return np.array(page.locator(".decoded canvas").evaluate(read)).reshape(FACTS["size"], -1)


def shares(page, which):
    "The percentages of all classes as shown: 'play-asked', 'proposed' or 'judge'"
    return [int(t.split()[0]) for t in page.locator(f".play-class .{which} > span").all_inner_texts()]


def slider(page, name):
    return page.get_by_label(f"share of {name}")


def mode(page, text):
    page.get_by_label(text).check()
    settled(page)


def case(page, which, i):
    page.locator(f"input[name={which}]").nth(i).check()
    settled(page)


# -- without the networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [True, False])
def test_strip_needs_no_script(browser, base, script):
    page, found = closed(browser, base, java_script_enabled=script)
    assert page.locator(".play-strip .tile:visible").count() == 1
    page.locator(".play-strip input").first.focus()
    for _ in range(LAST):
        page.keyboard.press("ArrowRight")
    words = play_page.in_words(FACTS["strip"]["asked"][LAST], CLASSES)
    assert page.locator(".play-strip .tile:visible").get_attribute("alt") == f"decoded image: {words}"
    text = page.locator(".play-strip table:visible").inner_text()
    assert play_page.percent(FACTS["strip"]["judge"][LAST][0]) in text
    assert page.locator(".play-start").count() == (script and (PLAY / runtime.FILES[0]).exists())
    assert not found
    page.context.close()


def test_nothing_is_loaded_before_the_click(browser, base, networks):
    asked = []
    with browser.new_context() as context:
        tab = context.new_page()
        tab.on("request", lambda r: asked.append(r.url.split("/")[-1]))
        tab.goto(base + "play.html", wait_until="networkidle")
        assert not [name for name in asked if name.endswith((".onnx", ".wasm", ".mjs"))]
        tab.click(".play-start")
        tab.wait_for_selector(".play[data-redraws]")
        wanted = {*runtime.FILES, "decoder.onnx", "proposed.onnx", "judge.onnx", "play.json"}
        assert wanted <= set(asked)


def test_a_browser_that_cannot_run_them_keeps_the_strip(browser, base, networks):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.route("**/*.wasm", lambda route: route.abort())
        tab.goto(base + "play.html")
        tab.click(".play-start")
        tab.get_by_text("This browser cannot run the networks").wait_for()
        assert tab.locator(".play-strip .tile:visible").count() == 1


# -- with them ---------------------------------------------------------------------------------------------------------


def test_browser_and_torch_agree(page):
    "On the images of the strip, which torch decoded and saw"
    tiles = np.array(Image.open(play_page.DATA / "strip.png")).reshape(FACTS["size"], LAST + 1, -1)
    mode(page, "Mix classes")
    case(page, "a", FACTS["strip"]["of"])
    for k, name in enumerate(CLASSES):
        i = k * LAST // (len(CLASSES) - 1)
        slider(page, name).fill("1")
        settled(page)
        assert shares(page, "play-asked") == [100 * (j == k) for j in range(len(CLASSES))]
        assert np.abs(decoded(page) - tiles[:, i].astype(int)).max() <= 1
        for who in ("proposed", "judge"):
            assert np.allclose(shares(page, who), 100 * np.array(FACTS["strip"][who][i]), atol=1)


def test_a_slider_moves_image_and_numbers(page):
    mode(page, "Mix classes")
    case(page, "a", 0)
    slider(page, CLASSES[0]).fill("1")
    settled(page)
    before = decoded(page), shares(page, "proposed")
    slider(page, CLASSES[3]).focus()
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    settled(page)
    assert shares(page, "play-asked") == [50, 0, 0, 50]
    assert np.abs(decoded(page) - before[0]).max() > 20 and shares(page, "proposed") != before[1]
    assert slider(page, CLASSES[3]).get_attribute("aria-valuetext") == "50 %"


def test_the_square_by_mouse_and_by_keyboard(page):
    mode(page, "Mix classes")
    page.locator(".play-pad").scroll_into_view_if_needed()
    box = page.locator(".play-pad").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    settled(page)
    assert shares(page, "play-asked") == [25] * 4
    page.locator(".play-pad").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    settled(page)
    assert shares(page, "play-asked") == [0, 0, 0, 100]


def test_another_case_by_arrow_key(page):
    mode(page, "Mix classes")
    case(page, "a", 0)
    before = decoded(page)
    page.locator("input[name=a]").first.focus()
    page.keyboard.press("ArrowRight")
    settled(page)
    assert "cyst 2" in page.locator(".original.a figcaption").inner_text()
    assert np.abs(decoded(page) - before).max() > 5


def test_the_noise(page):
    mode(page, "Mix classes")
    smooth = decoded(page)
    page.get_by_label("noise").check()
    settled(page)
    assert np.diff(decoded(page)).std() > 3 * np.diff(smooth).std()
    page.get_by_label("noise").uncheck()
    settled(page)
    assert (decoded(page) == smooth).all()


def test_the_way_between_two_cases(page):
    mode(page, "Go from one case to another")
    a, b = 0, len(FACTS["cases"]) - 1
    case(page, "a", a)
    case(page, "b", b)
    way, target = page.get_by_label("way from A to B"), lambda: shares(page, "play-asked")
    images = {}
    for travels in ("c and r", "only c", "only r"):
        page.get_by_label(travels, exact=True).check()
        way.fill("1")
        settled(page)
        images[travels] = decoded(page)
        assert target() == ([100, 0, 0, 0] if travels == "only r" else [0, 0, 0, 100])
    assert len({image.tobytes() for image in images.values()}) == 3
    way.fill("0")
    settled(page)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.play-way input').value > 0.2")
    page.get_by_role("button", name="Pause").click()
    settled(page)
    stopped = way.input_value()
    page.wait_for_timeout(200)
    assert way.input_value() == stopped and 0.2 < float(stopped) < 1


def test_every_control_has_a_name_and_shows_its_focus(page):
    mode(page, "Mix classes")
    names = page.evaluate("""[...document.querySelectorAll('.play :is(input, button, [tabindex])')].map(e =>
        e.getAttribute('aria-label') || e.textContent || [...e.labels].map(l => l.textContent).join(''))""")
    assert all(name.strip() for name in names)
    page.locator("input[name=mode]").first.focus()
    seen = set()
    for _ in range(9):
        page.keyboard.press("Tab")
        style = page.evaluate("""() => {
            const e = document.activeElement.closest('.play-picker label') || document.activeElement
            return [e.className || e.type, getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]
        }""")
        if page.evaluate("document.activeElement.closest('.play') !== null"):
            assert style[1] == "solid" and style[2] == "3px", style
            seen.add(style[0])
    assert {"play-pad", "range", "checkbox"} <= seen


def test_it_is_said_to_screen_readers_once_a_movement_ends(page):
    mode(page, "Mix classes")
    slider(page, CLASSES[1]).fill("1")
    said = page.locator(".play-said")
    page.wait_for_function("document.querySelector('.play-said').textContent.startsWith('Asked: 100 % metastasis.')")
    assert said.get_attribute("role") == "status"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(browser, base, networks, width, scheme):
    "No wider than the screen in either mode, and readable in both colour schemes"
    tab, found = opened(browser, base, viewport={"width": width, "height": 844}, color_scheme=scheme)
    for text in ("Mix classes", "Go from one case to another"):
        mode(tab, text)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        side = tab.locator(".decoded canvas").bounding_box()
        assert abs(side["width"] - side["height"]) < 1 and side["width"] > 150
    colours = tab.evaluate("""[getComputedStyle(document.querySelector('.play-key')).color,
                               getComputedStyle(document.body).backgroundColor]""")
    ink, paper = ([int(v) for v in re.findall(r"\d+", colour)[:3]] for colour in colours)
    assert abs(np.mean(ink) - np.mean(paper)) > 90
    assert not found
    tab.context.close()


# -- how it is made ----------------------------------------------------------------------------------------------------


def test_numbers_of_the_text_come_from_the_run():
    text = (SITE / "play.html").read_text(encoding="utf-8")
    assert "{{" not in text.split("<article")[1]
    assert play_page.percent(FACTS["measures"]["swap_to_code"]) in text


def test_files_are_small():
    assert sum(p.stat().st_size for p in play_page.DATA.iterdir()) < 6e6


def test_without_networks_the_page_says_so():
    html = play_page.widget(FACTS, 0)
    assert "built without the networks" in html and "data-megabytes" not in html


def package(path, content):
    with tarfile.open(path, "w:gz") as tar:
        for name in runtime.FILES:
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_another_package_is_not_unpacked(tmp_path):
    with pytest.raises(runtime.Unavailable, match="is not the file"):
        runtime.unpack(package(tmp_path / "a.tgz", b"evil"), tmp_path)
    assert not (tmp_path / runtime.FILES[0]).exists()


@pytest.mark.parametrize("error, said", [
    (FileNotFoundError(), "npm is not installed"),
    (TimeoutExpired("npm", 1), "five minutes"),
    (CalledProcessError(1, "npm", stderr="npm error code ENOTFOUND\nmore"), "ENOTFOUND"),
])  # fmt: skip
def test_without_npm_or_network(tmp_path, monkeypatch, capsys, error, said):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(runtime, "CACHE", tmp_path / "cache/1")
    monkeypatch.setattr(runtime.subprocess, "run", fails)
    monkeypatch.delenv("LIVERDIS_REQUIRE_RUNTIME", raising=False)
    assert runtime.runtime_or_note() == []
    assert said in capsys.readouterr().out
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setenv("LIVERDIS_REQUIRE_RUNTIME", "1")
    with pytest.raises(runtime.Unavailable, match=said):
        runtime.runtime_or_note()
