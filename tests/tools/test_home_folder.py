"""Paths that begin with `~` on command lines, where no shell expands them: behind an equals sign, or in quotes."""

import pytest
from torch import nn

from mask2former.checkpoint import Checkpointer
from mask2former.data.datasets import datasets_root
from mask2former.data.datasets.custom import read_entries

from ..conftest import load_script

COMMANDS = {
    "tools/convert_weights.py": (["~/a.pth", "~/b.pth"], {"output": "b.pth"}),
    "tools/dataset.py": (
        ["config", "--images=~/images", "--annotations=~/a.json", "--output=~/out", "--gpu-memory=0"],
        {"images": "images", "annotations": "a.json", "output": "out"},
    ),
    "tools/export.py": (
        ["--config-file=~/a.yaml", "--format=onnx", "--output=~/b.onnx", "--verify", "~/c.jpg"],
        {"config_file": "a.yaml", "output": "b.onnx", "verify": "c.jpg"},
    ),
    "tools/reproduce.py": (["--datasets=~/d", "--weights=~/w"], {"datasets": "d", "weights": "w"}),
    "demo/demo.py": (["--config-file=~/a.yaml", "--input=~/b.jpg", "--output=~/c"], {"output": "c"}),
}


@pytest.mark.parametrize("script", COMMANDS)
def test_options_of_scripts(monkeypatch, tmp_path, script):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("d", "w"):
        (tmp_path / folder).mkdir()
    words, expected = COMMANDS[script]
    options = load_script(script).parse_arguments(words)
    for name, path in expected.items():
        found = getattr(options, name)
        assert (found[0] if isinstance(found, list) else found) == tmp_path / path


def test_weights_to_convert(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        load_script("tools/convert_weights.py").main(["~/absent.pth", "~/b.pth"])
    assert f"checkpoint not found: {tmp_path}/absent.pth" in capsys.readouterr().err


def test_weights_and_output_of_a_training(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, "~/run")
    checkpointer.save("w")
    assert (tmp_path / "run" / "w.pth").is_file()
    checkpointer.load("~/run/w.pth")
    assert len(checkpointer.report.loaded) == 2


def test_folders_of_data(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets_root() == tmp_path / "data"
    entry = {"name": "mine", "format": "coco_instance", "images": "~/images", "annotations": "a.json", "classes": ["a"]}
    (data,) = read_entries([entry], "~/configs")
    assert data.paths == {"images": tmp_path / "images", "annotations": tmp_path / "configs" / "a.json"}
