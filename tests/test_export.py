"""Networks as ONNX: by the command, for two classes, from bfloat16, without the extra. The notebook has the rest."""

import dataclasses
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from liverdis.core import InputError
from liverdis.method.arms import GENERATORS
from liverdis.method.models import classifier_network, n_parameters
from liverdis.settings import preset
from liverdis.study.run import Run, Task, versions
from liverdis.use.cli import app
from liverdis.use.export import Exportable, exportables, to_onnx


def untrained_run(folder, **changes):
    "A run whose networks have their initial weights, with the statistics of c that training would have set"
    s = preset("smoke", **changes)
    info = {"settings": dataclasses.asdict(s), "arms": ["baseline", "proposed"], "repeats": 1, "n_folds": 3}
    info |= {"data": "own manifest", "data_checksum": "0" * 64, "versions": versions(), "device": "cpu", "seed": 0}
    info |= {"wall_time_s": 0.0, "rois_sha256": "", "folds_sha256": {}}  # it has neither
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    run, generator = Run(folder), GENERATORS["disentangle"]
    net = generator.model(generator.settings(s))
    net.fit_scale(3 * torch.rand(50, s.code_size) + 1)
    for kind, model in (("proposed", classifier_network(s)), ("disentangle", net)):
        task = Task(0, 1, kind)
        run.finish(task, {"task": dataclasses.asdict(task), "classes": s.classes}, model)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("export") / "run", classes=("cyst", "healthy"), precision="bfloat16")


def both(net, session, *inputs):
    "The last output by torch and by ONNX Runtime"
    with torch.no_grad():
        ours = net(*inputs)
    theirs = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})
    return (ours[-1] if isinstance(ours, tuple) else ours).numpy(), theirs[-1]


def test_command_writes_what_torch_computes(run, tmp_path):
    "Two classes, batches of other lengths than traced, float32 although the run was trained in bfloat16"
    r = CliRunner().invoke(app, ["export", str(run.folder), "--onnx", str(tmp_path / "new/folder")])
    assert r.exit_code == 0, r.output
    nets = exportables(run)
    assert sorted(p.stem for p in (tmp_path / "new/folder").iterdir()) == sorted(nets)
    for name, exportable in nets.items():
        session = onnxruntime.InferenceSession(tmp_path / f"new/folder/{name}.onnx")
        for part in exportable.net.modules():
            if hasattr(part, "precision"):
                part.precision = "float32"
        for n in (1, 7):
            inputs = [torch.rand(n, *x.shape[1:]) for x in exportable.inputs.values()]
            ours, theirs = both(exportable.net, session, *inputs)
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4
        facts = session.get_modelmeta().custom_metadata_map
        assert json.loads(facts["classes"]) == ["cyst", "healthy"] and "not a medical device" in facts["use"]
        assert str(tmp_path).encode() not in (tmp_path / f"new/folder/{name}.onnx").read_bytes()


def test_before_phase_2_there_is_the_classifier_alone(tmp_path):
    "Here in 16 bits"
    early = untrained_run(tmp_path / "run")
    early.record_file(Task(0, 1, "disentangle")).unlink()
    r = CliRunner().invoke(app, ["export", str(early.folder), "--onnx", str(tmp_path / "onnx"), "--half"])
    assert r.exit_code == 0, r.output
    (path,) = (tmp_path / "onnx").iterdir()
    net = early.network(Task(0, 1, "proposed"))
    assert path.name == "classifier.onnx" and path.stat().st_size < 4 * n_parameters(net)
    image = torch.rand(3, 1, early.settings.roi_size, early.settings.roi_size)
    probabilities = onnxruntime.InferenceSession(path).run(["probabilities"], {"image": image.numpy()})[0]
    assert 0 < np.abs(probabilities - net(image).softmax(1).detach().numpy()).max() < 1e-3


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r'pip install "liverdis\[onnx\]"'):
        to_onnx(Exportable(torch.nn.Linear(2, 2), {"x": torch.rand(2, 2)}, ("y",)))


def test_the_site_shows_no_patients(run):
    import play

    with pytest.raises(InputError, match="not a run of the phantom"):
        play.main(run.folder)
