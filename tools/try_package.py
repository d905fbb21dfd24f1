"""An installed liverdis as its user meets it: `python tools/try_package.py README.md [--oldest]`.

Run it with the interpreter of an environment that holds the wheel and what pip resolves for it, nothing else. With
--oldest the requirements, those of the extras too, must be there in the lowest versions that they allow.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

import torch
from packaging.requirements import Requirement

import liverdis

extras = ("cluster", "explore", "onnx", "pretrained") if "--oldest" in sys.argv else ()


def is_here(marker):
    """Whether a requirement with this marker belongs to what is installed."""
    return any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def use_extras(run, tmp):
    """ONNX files, the explorer's page, the pretrained network, and a run on a cluster."""
    subprocess.run([command, "export", run, "--onnx", f"{tmp}/onnx"], check=True)
    assert list(Path(tmp, "onnx").glob("*.onnx"))
    with subprocess.Popen([command, "explore", run, "--no-browser"], stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", next(line for line in server.stdout if "http://" in line))[0]
            assert b"widget-view" in urlopen(address, timeout=120).read(), "the page has no widgets"
        finally:
            server.terminate()
    from distributed import LocalCluster

    from liverdis.method.pretrained import efficientnet_lite0

    assert efficientnet_lite0()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    with LocalCluster(processes=False, protocol="tcp", n_workers=1, threads_per_worker=1, dashboard_address=None) as c:
        where = ["--out", f"{tmp}/cluster", "--scheduler", c.scheduler_address]
        subprocess.run([command, "reproduce", "--preset", "smoke", *where], check=True)


home = Path(liverdis.__file__).parent
assert home.parent.name == "site-packages", f"this is a checkout, not an installed package: {home}"
assert (files("liverdis") / "py.typed").is_file(), "no py.typed: type checkers would not read the annotations"
modules = [m.name for m in pkgutil.walk_packages(liverdis.__path__, "liverdis.")]
assert {"liverdis.core", "liverdis.cohort.ct", "liverdis.method.models", "liverdis.use.cli"} <= set(modules), modules
for name in modules:
    importlib.import_module(name)
assert any(files("liverdis").joinpath("templates").iterdir()), "no templates: reports could not be written"

readme = Path(sys.argv[1]).read_text(encoding="utf-8")
blocks = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
imports = re.findall(r"^(?:from liverdis\S* import .*|import liverdis.*)$", "\n".join(blocks), re.M)
exec("\n".join(imports))

command = Path(sys.executable).with_name("liverdis")
commands = sorted(set(re.findall(r"^liverdis (\w+)", readme, re.M)))
assert commands, f"no command found in {sys.argv[1]}"
for name in commands:  # every command that the README shows exists and explains itself
    subprocess.run([command, name, "--help"], check=True, capture_output=True)
assert "not a medical device" in " ".join(
    subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout.split()
)
with tempfile.TemporaryDirectory() as tmp:
    subprocess.run([command, "reproduce", "--preset", "smoke", "--out", f"{tmp}/run"], check=True, cwd=tmp)
    made = {p.name for p in Path(tmp, "run").iterdir()}
    assert {"results.json", "predictions.csv", "report.html"} <= made, f"the run left only {sorted(made)}"
    if extras:
        use_extras(f"{tmp}/run", tmp)

wanted = [r for r in map(Requirement, requires("liverdis")) if r.marker is None or is_here(r.marker)]
direct = sorted({r.name for r in wanted})
if "--oldest" in sys.argv:
    bounds = {r.name: s.version for r in wanted for s in r.specifier if s.operator == ">="}
    newer = {name: version(name) for name, lowest in bounds.items() if not f"{version(name)}.".startswith(f"{lowest}.")}
    assert not newer, f"newer than the lowest that is allowed: {newer}"
print(f"Python {sys.version.split()[0]}:", ", ".join(f"{name} {version(name)}" for name in direct))
print(f"{len(modules)} modules, {len(imports)} imports and the commands {', '.join(commands)} of the README work")
