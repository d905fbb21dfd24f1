"""A browser and a web server on this machine, and what is watched while a page is open. Needs Chromium or Chrome."""

from http.server import SimpleHTTPRequestHandler
from urllib.parse import urlsplit

FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
""".split()
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # there is no other host
PHONE, DESK = {"width": 375, "height": 800}, {"width": 1300, "height": 900}


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # many files over one connection

    def log_message(self, *args):
        pass


def watch(page, url):
    "A list that grows with what goes wrong in `page`: console, scripts, answers, and what is asked from outside"
    found, home = [], urlsplit(url).netloc

    def asked(request):
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != home:
            found.append(f"from outside: {request.url}")

    page.on("console", lambda m: found.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: found.append(f"script: {e}"))
    page.on("response", lambda r: found.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("request", asked)  # a route would be asked too, but turns the browser's cache off
    return found
