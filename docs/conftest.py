"""The built site, a server for it and a browser, for all tests of this folder; CHROMIUM may name the browser."""

import os
import shutil
from functools import partial
from http.server import ThreadingHTTPServer
from threading import Thread

import pytest
from browsing import DESK, FLAGS, Quiet
from notebooks import ROOT
from playwright.sync_api import sync_playwright

SITE = ROOT / "_docs"


@pytest.fixture(scope="session")
def serve():
    "Serves a folder on this machine and returns its address"
    servers = []

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )
    with sync_playwright() as play:
        with play.chromium.launch(executable_path=found, args=FLAGS) as launched:
            yield launched


@pytest.fixture(scope="session")
def desk(browser):
    "One reader of many pages, whose cache holds what they share"
    with browser.new_context(viewport=DESK) as context:
        context.set_default_timeout(20_000)
        yield context


@pytest.fixture(scope="session")
def base(serve):
    assert (SITE / "index.html").exists(), "no site in _docs: run `make docs` first"
    return serve(SITE)
