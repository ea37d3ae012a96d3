"""The trainer from Python: predictions, files and results of its evaluation, and parts that can be replaced."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mask2former import setup_cfg
from mask2former.config import add_maskformer2_config
from mask2former.engine import Trainer

from ..conftest import ROOT, load_script
from ..evaluation.predictions import predict
from ..tiny import TINY

NAMES = ("ade20k_panoptic_val", "cityscapes_fine_panoptic_val")


class Interrupted(Exception):
    """Stands for a process that is killed."""


class Model(nn.Module):
    """Returns prepared predictions, and stops after a number of images."""

    def __init__(self, names, stop_after=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.answers = {}
        for name in names:
            for image, output in zip(*predict(name, np.random.default_rng(2)), strict=True):
                self.answers[image["file_name"]] = output
        self.stop_after = stop_after
        self.seen = []

    def forward(self, inputs):
        if len(self.seen) == self.stop_after:
            raise Interrupted
        self.seen += [Path(image["file_name"]).name for image in inputs]
        return [self.answers[image["file_name"]] for image in inputs]


@pytest.fixture
def config(trees, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))

    def config(folder, names=NAMES):
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        for task in ("PANOPTIC", "INSTANCE", "SEMANTIC"):
            cfg.MODEL.MASK_FORMER.TEST[f"{task}_ON"] = True
        cfg.MODEL.DEVICE = "cpu"
        cfg.INPUT.MIN_SIZE_TEST = 32
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATASETS.TEST = names
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        return cfg

    return config


def read(cfg, name="metrics.json"):
    return json.loads(Path(cfg.OUTPUT_DIR, "inference", name).read_text())


@pytest.mark.parametrize(("stop_after", "images"), [(2, [2, 4]), (6, [4, 2])])
def test_a_killed_evaluation_goes_on_with_the_images_that_are_missing(config, stop_after, images):
    """Killed in the first or the second of two data sets with four images each; speeds are those of the last run."""
    whole, resumed = config("whole"), config("resumed")
    model = Model(NAMES)
    Trainer.test(whole, model)
    killed = Model(NAMES, stop_after)
    with pytest.raises(Interrupted):
        Trainer.test(resumed, killed)
    rest = Model(NAMES)
    Trainer.test(resumed, rest, resume=True)
    assert killed.seen + rest.seen == model.seen
    assert len(set(model.seen)) == 8
    assert read(resumed) == read(whole)
    speeds = read(resumed, "speed.json")
    assert [speeds[name]["images"] for name in NAMES] == images
    # Nothing is left now; the speeds of before stay known.
    again = Model(NAMES)
    Trainer.test(resumed, again, resume=True)
    assert again.seen == []
    assert read(resumed) == read(whole)
    assert read(resumed, "speed.json") == speeds


def test_other_weights_or_no_resumption_start_afresh(config):
    cfg = config("run", NAMES[:1])
    with pytest.raises(Interrupted):
        Trainer.test(cfg, Model(NAMES[:1], stop_after=3))
    other = Model(NAMES[:1])
    torch.nn.init.ones_(other.weight)
    Trainer.test(cfg, other, resume=True)
    assert len(other.seen) == 4
    same = Model(NAMES[:1])
    torch.nn.init.ones_(same.weight)
    Trainer.test(cfg, same, resume=False)
    assert len(same.seen) == 4


def test_speed_is_written_for_each_data_set(config):
    cfg = config("run", NAMES[:1])
    Trainer.test(cfg, Model(NAMES[:1]))
    speeds = read(cfg, "speed.json")
    assert speeds.keys() == set(NAMES[:1])
    assert speeds[NAMES[0]]["images"] == 4
    assert speeds[NAMES[0]].keys() == {
        "images",
        "seconds",
        "images_per_second",
        "peak_memory_bytes",
        "device",
        "processes",
    }
    assert read(cfg)[NAMES[0]].keys() == {"panoptic_seg", "segm", "sem_seg"}


SHAPES = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"


def test_training_from_python_needs_no_script_and_each_part_can_be_replaced(tmp_path, monkeypatch):
    load_script("datasets/prepare_shapes.py").prepare(tmp_path, train=2, val=1, size=64)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    given = {"OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "INPUT.IMAGE_SIZE": 64}
    given |= {"DATALOADER.NUM_WORKERS": 0, "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": ""}
    cfg = setup_cfg(SHAPES, [*TINY, *(str(word) for pair in given.items() for word in pair)])
    built = []

    class Own(Trainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            built.append("optimizer")
            return super().build_optimizer(cfg, model)

        @classmethod
        def build_test_loader(cls, cfg, dataset_name, skip=None):
            built.append(dataset_name)
            return super().build_test_loader(cfg, dataset_name, skip)

    trainer = Own(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results.keys() == {"panoptic_seg", "segm", "sem_seg"}
    assert built == ["optimizer", "shapes_val_panoptic"]
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 0
