"""The notebook-style script runs as it stands, in a folder that looks like a checkout after `make demo`."""

import json
import runpy

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image

from mask2former import Predictor
from mask2former.data.datasets.shapes import draw_scene
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "predict.py"
CONFIG = "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"


@pytest.fixture
def checkout(tmp_path, monkeypatch, loggers_restored):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    weights = tmp_path / "output" / "shapes" / "train" / "model_final.pth"
    weights.parent.mkdir(parents=True)
    torch.save(Predictor.from_config(ROOT / CONFIG, "", device="cpu").model.state_dict(), weights)
    pictures = tmp_path / "datasets" / "shapes" / "val"
    pictures.mkdir(parents=True)
    for seed in range(4):
        Image.fromarray(draw_scene(RandomState(seed), 128).image).save(pictures / f"{seed}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_script_runs(checkout, capsys):
    damaged = checkout / "datasets" / "shapes" / "val" / "00_damaged.jpg"
    damaged.write_bytes((damaged.parent / "0.jpg").read_bytes()[:300])
    names = runpy.run_path(str(SCRIPT), run_name="__main__")
    out = checkout / "output" / "predict"
    assert sorted(file.name for file in out.iterdir()) == [
        "detections.json",
        "first.png",
        "instances.png",
        "panoptic.json",
        "panoptic.png",
    ]
    assert np.array_equal(np.asarray(Image.open(out / "panoptic.png")), names["result"].draw())
    (annotation,) = json.loads((out / "panoptic.json").read_text())["annotations"]
    assert len(annotation["segments_info"]) == len(names["result"].segments())
    printed = capsys.readouterr().out
    assert "tasks: panoptic, instance, semantic - classes: disc, square" in printed
    assert "skipped: datasets/shapes/val/00_damaged.jpg: " in printed and len(names["PHOTOS"]) == 4


def test_every_cell_is_marked():
    text = SCRIPT.read_text()
    cells = text.split("# %%")
    assert cells[0] == "" and len(cells) > 10
    for cell in cells[1:]:
        heading, *lines = cell.strip().splitlines()
        if heading == "[markdown]":
            assert all(line.startswith("#") for line in lines)
        else:
            compile(cell.partition("\n")[2], "cell", "exec")
