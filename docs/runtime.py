"""The two files of onnxruntime-web (MIT licence) that run networks in the page Play: WebAssembly and its JavaScript.

They come from npm, in one version whose hash is known, and stay in docs/.runtime for the next build. Without npm or a
network the page is built all the same, with pictures in place of the networks. Where LIVERDIS_REQUIRE_RUNTIME is set,
as where the site is published, that is an error.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as npm has it
FILES = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
CACHE = Path(__file__).parent / ".runtime" / VERSION


class Unavailable(Exception):
    pass


def download(folder):
    "The package as a file in `folder`"
    command = ["npm", "pack", "--silent", "--pack-destination", folder, f"onnxruntime-web@{VERSION}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    except FileNotFoundError:
        raise Unavailable("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable("npm took more than five minutes") from None
    except subprocess.CalledProcessError as e:
        raise Unavailable(f"npm cannot fetch it: {(e.stderr.strip() or 'no reason given').splitlines()[0]}") from None
    return next(Path(folder).glob("*.tgz"))


def unpack(package, folder):
    "The files that we need, from a package whose hash is the known one"
    if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != SHA512:
        raise Unavailable(f"{package.name} is not the file that docs/runtime.py knows")
    with tarfile.open(package) as tar:
        for name in FILES:
            with tar.extractfile(f"package/dist/{name}") as packed, open(folder / name, "wb") as out:
                shutil.copyfileobj(packed, out)


def runtime():
    "Paths of the files, fetched if they are not there. Raises `Unavailable`"
    if not CACHE.exists():
        CACHE.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
            unpacked = Path(folder) / "unpacked"
            unpacked.mkdir()
            unpack(download(folder), unpacked)
            unpacked.rename(CACHE)
    return [CACHE / name for name in FILES]


def runtime_or_note():
    "Paths of the files; none, and a line that says why, where they cannot be had and need not be"
    try:
        return runtime()
    except Unavailable as e:
        if os.environ.get("LIVERDIS_REQUIRE_RUNTIME"):
            raise Unavailable(f"onnxruntime-web is required and not here: {e}") from None
        print(f"docs: onnxruntime-web is not here ({e}): the page Play is built without its networks")
        return []
