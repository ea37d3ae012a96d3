"""The demo in two processes writes what one does, each result once, with one summary."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Predictor
from tests.conftest import ROOT, config_path, load_script
from tests.tiny import TINY

demo = load_script("demo/demo.py")
CONFIG = config_path("coco-panoptic")


@pytest.fixture
def arguments(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "damaged.jpg").write_text("damaged")
    torch.save(Predictor.from_config(CONFIG, "", TINY).model.state_dict(), tmp_path / "model.pth")
    options = ["--config-file", str(CONFIG), "--input", str(folder), "--json", "--output"]
    return options, [*TINY, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]


@pytest.mark.slow
def test_two_processes_write_what_one_does(arguments, tmp_path):
    (options, keys), outputs = arguments, {name: tmp_path / name for name in ("one", "two")}
    assert demo.main([*options, str(outputs["one"]), *keys]) == 1
    command = [*("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "demo/demo.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command += [*options, str(outputs["two"]), *keys]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("3 of 4 images done") == 1, done.stdout + done.stderr
    assert done.stderr.count("skipped: ") == 1
    # The records stay, so that the launcher's next attempt repeats only what failed.
    written = {path.name: path.read_bytes() for path in outputs["two"].iterdir() if path.is_file()}
    assert written == {path.name: path.read_bytes() for path in outputs["one"].iterdir()}
    assert list(outputs["two"].glob(".unfinished_*/rank*.jsonl"))


def test_the_camera_is_for_one_process(monkeypatch, tmp_path, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as end:
        demo.main(["--config-file", "F", "--webcam", "0"])
    assert end.value.code == 2 and "--webcam is for one process, without torchrun" in capsys.readouterr().err
