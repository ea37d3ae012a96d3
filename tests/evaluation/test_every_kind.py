"""`train_net.py --eval-only` with a model of every kind: the same files, and the metrics of the kind."""

import json
import math
import os

import pytest
from PIL import Image

import train_net
from mask2former import setup_cfg
from mask2former.evaluation import build_evaluator
from mask2former.tasks import ARCHITECTURES
from tests.kinds import KINDS


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder with ImageNet's class folders, each with the same small image."""
    root = tmp_path_factory.mktemp("imagenet")
    Image.new("RGB", (40, 32), (200, 100, 50)).save(root / "image.png")
    for number in range(1000):
        folder = root / "imagenet" / "val" / f"n{number:08d}"
        folder.mkdir(parents=True)
        os.link(root / "image.png", folder / "0.png")
    return root


@pytest.fixture
def run(kind, weights_of, tmp_path, trees, imagenet, monkeypatch, loggers_restored):
    """The command, whose results go to a folder that is returned."""

    def run(*words, flags=("--eval-only",)):
        root = imagenet if kind.task == "classification" else trees
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        small = ["DATALOADER.NUM_WORKERS", "0", "TEST.IMS_PER_BATCH", "25" if root is imagenet else "2"]
        opts = [*weights_of(kind.name), *small, "OUTPUT_DIR", str(tmp_path / "out")]
        if root is imagenet:
            opts += ["INPUT.CLASSIFICATION.SIZE", "32"]
        train_net.run([*kind.command, "--num-gpus", "1", *flags, *opts, *words])
        return tmp_path / "out"

    return run


def test_metrics_and_predictions(run, kind):
    folder = run() / "inference"
    assert {"metrics.json", "speed.json"} <= {file.name for file in folder.iterdir()}
    ((dataset, found),) = json.loads((folder / "metrics.json").read_text()).items()
    assert dataset == kind.dataset and found.keys() == kind.metrics.keys()
    for task, metric in kind.metrics.items():
        value = found[task][metric]
        assert value is not None and math.isfinite(value) and 0 <= value <= 100
    evaluator = build_evaluator(setup_cfg(kind.config, kind.opts), dataset)
    assert {metric.name for metric in evaluator.metrics} == found.keys()
    assert all((folder / output).exists() for metric in evaluator.metrics for output in metric.outputs)
    assert f"Results on {dataset}" in (folder.parent / "log.txt").read_text()
    if ARCHITECTURES[kind.architecture].boxes:
        boxes = json.loads((folder / "coco_boxes_results.json").read_text())
        masks = json.loads((folder / "coco_instances_results.json").read_text())
        assert len(boxes) == len(masks) > 0
        assert all(len(entry["bbox"]) == 4 and isinstance(entry["bbox"][0], float) for entry in boxes)
        assert all(entry["segmentation"].keys() == {"size", "counts"} for entry in masks)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.augmented], ids=lambda kind: kind.name)
@pytest.mark.parametrize("flags", [("--eval-only",), ()])
def test_augmentation_is_refused_before_anything_is_predicted_or_trained(run, kind, flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("TEST.AUG.ENABLED", "True", flags=flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if "TEST.AUG.ENABLED is True, but" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and kind.architecture in lines[0]
    assert not (tmp_path / "out" / "inference").exists()


@pytest.mark.parametrize("kind", [KINDS["upernet"]])
def test_augmented_results_are_beside_the_plain_ones(run, kind):
    folder = run("TEST.AUG.ENABLED", "True") / "inference"
    found = json.loads((folder / "metrics.json").read_text())[kind.dataset]
    assert set(found) == {"sem_seg", "sem_seg_TTA"} and (folder / "tta" / "semantic_predictions").is_dir()
