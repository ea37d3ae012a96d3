"""train_net.py, demo.py and Predictor with UPerNets, on a miniature ADE20K."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Predictor
from mask2former.checkpoint import to_openmmlab

from .conftest import ROOT, load_script

ADE20K = ROOT / "configs/ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml"
SMALL = (
    "MODEL.WEIGHTS '' MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 32 MODEL.DINAT.DEPTHS [1,1,1,1] "
    "MODEL.DINAT.NUM_HEADS [1,2,4,8] MODEL.DINAT.DILATIONS [[1],[2],[1],[1]] MODEL.DINAT.KERNEL_SIZE 3 "
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.AUXILIARY_HEAD.CONVS_DIM 16 MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY 64 "
    "INPUT.MIN_SIZE_TRAIN (32,128) INPUT.MAX_SIZE_TRAIN 512 INPUT.CROP.SIZE (64,64) INPUT.MIN_SIZE_TEST 64 "
    "INPUT.MAX_SIZE_TEST 256 TEST.AUG.MIN_SIZES [32,64] TEST.AUG.MAX_SIZE 256 SOLVER.IMS_PER_BATCH 2 "
    "SOLVER.WARMUP_ITERS 1 DATALOADER.NUM_WORKERS 0 SEED 1 TEST.EVAL_PERIOD 0"
).split()


@pytest.fixture
def run(loggers_restored):
    """The command line in this process."""
    return load_script("train_net.py").run


def results(folder):
    (found,) = json.loads((folder / "inference" / "metrics.json").read_text()).values()
    return found


def test_trains_resumes_averages_and_evaluates_on_ade20k(run, trees, tmp_path, monkeypatch):
    """Accumulated steps with an average of the weights, validation losses, and both kinds of evaluation."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    options = "SOLVER.ACCUMULATE_STEPS 2 SOLVER.EMA.ENABLED True TEST.VALIDATION_LOSS True SOLVER.CHECKPOINT_PERIOD 1"
    command = ["--config-file", str(ADE20K), *SMALL, *options.split()]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run([*command, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(whole)])
    lines = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()]
    assert {"loss_sem_seg", "loss_auxiliary", "validation/loss_sem_seg"} <= {key for line in lines for key in line}
    trained = torch.load(whole / "model_final.pth", weights_only=True)["model"]
    assert trained["sem_seg_head.bottleneck.norm.num_batches_tracked"] == 4
    assert set(results(whole)["sem_seg"]) >= {"mIoU", "pACC"}

    stopped.mkdir()
    (stopped / "model_0000000.pth").write_bytes((whole / "model_0000000.pth").read_bytes())
    (stopped / "last_checkpoint").write_text("model_0000000.pth")
    run([*command, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(stopped), "--resume"])
    resumed = torch.load(stopped / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, resumed[name]) for name, value in trained.items())

    # The file in its published form, with the multi-scale protocol, and in windows.
    published = {"meta": {"CLASSES": ("wall",)}, "state_dict": to_openmmlab(trained)}
    torch.save(published, tmp_path / "published.pth")
    evaluate = [
        *command,
        "--eval-only",
        "SOLVER.EMA.ENABLED",
        "False",
        "MODEL.WEIGHTS",
        str(tmp_path / "published.pth"),
    ]
    run([*evaluate, "TEST.AUG.ENABLED", "True", "OUTPUT_DIR", str(tmp_path / "augmented")])
    assert set(results(tmp_path / "augmented")) == {"sem_seg", "sem_seg_TTA"}
    windows = "MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE [48,48] MODEL.PIXEL_CLASSIFIER.WINDOW_STRIDE [32,32]".split()
    run([*evaluate, *windows, "OUTPUT_DIR", str(tmp_path / "windows")])
    assert set(results(tmp_path / "windows")) == {"sem_seg"}


def test_predictor_and_demo_give_class_maps(tmp_path, loggers_restored):
    """Of a model whose classes would allow panoptic segmentation, too."""
    opts = [*SMALL, "DATASETS.TRAIN", "('ade20k_panoptic_train',)"]
    predictor = Predictor.from_config(ADE20K, "", opts=opts)
    assert (predictor.task, predictor.model.inference_settings.tasks) == ("semantic", ("semantic",))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    result = predictor(image)
    assert result.size == (60, 90) and sum(segment["area"] for segment in result.segments()) == 60 * 90
    # The network sees an image of 64 x 96 pixels, without padding.
    assert predictor.analyze(image).output.image_size == (64, 96)
    Image.fromarray(image).save(tmp_path / "image.png")
    demo = ["--config-file", str(ADE20K), "--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "out")]
    assert load_script("demo/demo.py").main([*demo, "--json", *SMALL]) == 0
    assert json.loads((tmp_path / "out" / "image_semantic.json").read_text())["task"] == "semantic"
