"""A browser and a web server on this machine, and what is watched while a page is open. Needs Chromium or Chrome."""

from http.server import SimpleHTTPRequestHandler
from urllib.parse import urlsplit

FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
""".split()
PHONE, DESK = {"width": 375, "height": 800}, {"width": 1300, "height": 900}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def watch(page, url):
    "A list that grows with what goes wrong in `page`: console, scripts, answers; what comes from outside is stopped"
    found, home = [], urlsplit(url).netloc
    page.on("console", lambda m: found.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: found.append(f"script: {e}"))
    page.on("response", lambda r: found.append(f"{r.status}: {r.url}") if r.status >= 400 else None)

    def local(route):
        if urlsplit(route.request.url).netloc == home:
            return route.continue_()
        found.append(f"from outside: {route.request.url}")
        route.abort()

    page.route("**/*", local)
    return found
