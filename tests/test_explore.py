"""The explorer in a real browser, as a person uses it; and pages that show names from files."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from liverdis.study.evaluate import read_predictions
from liverdis.study.report import write_report
from liverdis.study.report_figures import hardest
from liverdis.use.explore import _free_port, _start, _wait, _write_page
from liverdis.use.trained import example_run

RESULTS = Path(__file__).resolve().parent.parent / "nbs/results/demo"
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
SERVE = "import sys; from liverdis.use.explore import serve; serve(sys.argv[1], ready=lambda a: print(a, flush=True))"
DECODED = "[...document.querySelectorAll('img[alt=decoded]')].map(i => i.src).join()"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_run(tmp_path_factory.mktemp("explore") / "a run, ü")


@pytest.fixture(scope="module")
def address(run):
    "Where the explorer of the run is served"
    pytest.importorskip("voila", reason="the extra liverdis[explore] is not installed")
    server = subprocess.Popen([sys.executable, "-c", SERVE, run.folder], stdout=subprocess.PIPE, text=True)
    line = next((line for line in server.stdout if line.startswith("http")), None)
    yield line.strip()
    server.send_signal(signal.SIGINT)
    server.wait(20)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs Chromium or Chrome")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as play:
        with play.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as launched:
            yield launched


def watched(browser, home, **how):
    "A page, and a list of what goes wrong on it: console, scripts, requests to another host"
    page, found = browser.new_context(**how).new_page(), []
    page.set_default_timeout(90_000)
    page.on("console", lambda m: found.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: found.append(str(e)))
    ours = (home, home.replace("http", "ws", 1), "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(ours) else found.append(f"outside: {r.url}"))
    return page, found


def tab(page, name):
    page.locator(".lm-TabBar-tab", has_text=name).first.click()


def test_a_person_moves_a_slider(address, browser):
    "With the keyboard alone: the picture changes, nothing fails, nothing is asked of another host"
    home = address.split("/?")[0]
    page, found = watched(browser, home, viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector(".jupyter-widgets img")
    names = page.locator(".lm-TabBar-tab").all_inner_texts()
    assert [n.strip() for n in names] == ["Swap", "Mix", "Retrieve", "Map", "Look"]
    tab(page, "Mix")
    before = page.evaluate(DECODED)
    share = page.locator(".noUi-handle:visible").nth(4)  # of the second class
    share.focus()
    assert share.evaluate("e => e === document.activeElement")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{DECODED} !== {before!r}")
    for name in ("Retrieve", "Map", "Look", "Swap"):
        tab(page, name)
        page.wait_for_function("[...document.querySelectorAll('img')].filter(i => i.offsetParent).length > 0")
    assert page.evaluate("[...document.images].every(i => i.alt)")
    page.set_viewport_size({"width": 390, "height": 800})
    tab(page, "Mix")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert found == []


def test_a_click_on_the_map_chooses_a_case(address, browser):
    "By mouse and by keyboard: slider and picture follow"
    page, found = watched(browser, address.split("/?")[0], viewport={"width": 390, "height": 800})
    page.goto(address)
    page.wait_for_selector(".jupyter-widgets img")
    tab(page, "Map")
    dots = page.locator("[class*=map-] button:visible")
    shown = "[...document.querySelectorAll('img')].filter(i => i.offsetParent).map(i => i.src).join()"
    places = dots.evaluate_all("all => all.map(d => [d.getBoundingClientRect().x, d.getBoundingClientRect().y])")
    assert len({tuple(place) for place in places}) == dots.count() > 5
    assert all(0 <= x < 390 for x, _ in places)
    for i, choose in enumerate((lambda dot: dot.click(), lambda dot: dot.press("Enter"))):
        before, dot = page.evaluate(shown), dots.nth(2 + i)
        choose(dot)
        page.wait_for_function(f"{shown} !== {before!r}")
        assert "mod-active" in dot.get_attribute("class")
        assert page.locator(".noUi-handle:visible").first.get_attribute("aria-valuenow") == f"{2 + i}.0"
        assert dot.bounding_box()["width"] == 19 and ": " in dot.get_attribute("title")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert found == []


def test_nothing_without_the_token(address, browser):
    page, _ = watched(browser, address.split("/?")[0])
    page.goto(address.split("?")[0])
    assert "login" in page.url and page.locator(".jupyter-widgets").count() == 0


def test_the_token_is_on_no_command_line(address):
    token = address.split("token=")[1]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in process.read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue


def test_a_server_whose_port_was_taken_ends(tmp_path):
    "It looks for no other port while the token goes to who listens on this one"
    pytest.importorskip("voila", reason="the extra liverdis[explore] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        server = _start(_write_page(tmp_path, "1", "a-token"), stranger.getsockname()[1])
        assert server.wait(60) != 0


@pytest.fixture
def lab(run, tmp_path):
    "The address of a notebook with one cell in JupyterLab"
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    source = f"from liverdis.use.explore import explore\n\nexplore({str(run.folder)!r})"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "look.ipynb").write_text(json.dumps(notebook))
    port, token = _free_port(), "a-token"
    options = ["--no-browser", f"--port={port}", f"--IdentityProvider.token={token}", "--allow-root", "--ip=127.0.0.1"]
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path, stderr=subprocess.DEVNULL)
    _wait(server, port)
    yield f"http://127.0.0.1:{port}/lab/tree/look.ipynb?token={token}"
    server.terminate()
    server.wait(20)


def test_in_jupyterlab(lab, browser):
    "Run the cell, move a slider with the keyboard, and the picture changes"
    page, _ = watched(browser, lab.split("/lab")[0], viewport={"width": 1280, "height": 900})
    page.goto(lab)
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").wait_for()  # a cell run earlier than that is dropped
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".jp-OutputArea .lm-TabBar-tab")
    page.locator(".jp-OutputArea .lm-TabBar-tab", has_text="Mix").first.click()
    before = page.evaluate(DECODED)
    page.locator(".jp-OutputArea .noUi-handle:visible").nth(4).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{DECODED} !== {before!r}")
    assert page.evaluate(DECODED) != before


def test_report_of_a_run_of_ones_own_settings(tmp_path):
    "`reproduce` need not be told of a preset, and the oracle of a study has none"
    results = json.loads((RESULTS / "results.json").read_text())
    del results["preset"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    shutil.copy(RESULTS / "predictions.csv", tmp_path)
    assert "<title>liverdis: own settings" in write_report(tmp_path).read_text()


def test_names_from_files_are_escaped_in_the_report(tmp_path):
    "A case whose id is a script, and which is so hard that the report names it"
    for name in ("results.json", "predictions.csv"):
        shutil.copy(RESULTS / name, tmp_path)
    table = read_predictions(tmp_path / "predictions.csv")
    table.loc[table.case_id == hardest(table).index[0], "case_id"] = "<script>alert(1)</script>"
    table.to_csv(tmp_path / "predictions.csv", index=False)
    page = write_report(tmp_path).read_text()
    assert "&lt;script&gt;alert(1)" in page and not re.search("<script", page)
