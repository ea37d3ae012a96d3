"""Equality with the data sets' own evaluation code, on what it reads of our result files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes
from PIL import Image

import mask2former.data.datasets  # noqa: F401 - registers the data sets
from mask2former.evaluation import build_evaluator
from mask2former.modeling.inference import mask_boxes

from . import official
from .predictions import predict
from .test_build import config

ALL = config("PANOPTIC", "INSTANCE", "SEMANTIC")
COCO = ("coco_2017_val", "coco_2017_val_panoptic_with_sem_seg", "ade20k_instance_val", "ade20k_panoptic_val")
CITYSCAPES = ("cityscapes_fine_instance_seg_val", "cityscapes_fine_sem_seg_val", "cityscapes_fine_panoptic_val")


@pytest.fixture
def measure(trees, monkeypatch, tmp_path):
    """Evaluates random predictions for a data set of the trees; returns metadata, results and their folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    # cityscapesscripts writes there.
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")

    def measure(name, seed):
        folder = tmp_path / name
        evaluator = build_evaluator(ALL, name, folder)
        evaluator.reset()
        evaluator.process(*predict(name, np.random.default_rng(seed)))
        return MetadataCatalog.get(name), evaluator.evaluate(), folder

    return measure


def assert_equal(found, expected):
    """To 1e-9 of a fraction; NaN is equal to NaN. And there is something to compare."""
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-7, nan_ok=True), name
    assert sum(10 < value < 95 for value in expected.values()) > 2


@pytest.mark.parametrize("name", COCO)
def test_ap_is_pycocotools(measure, name):
    metadata, results, folder = measure(name, seed=1)
    assert_equal(results["segm"], official.coco_ap(metadata.json_file, folder / "coco_instances_results.json"))


@pytest.mark.parametrize("name", COCO)
def test_ap_of_boxes_and_masks_of_one_run_are_pycocotools(trees, monkeypatch, tmp_path, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    rng = np.random.default_rng(9)
    cfg = config("PANOPTIC")
    cfg.MODEL.META_ARCHITECTURE = "MaskRCNN"
    evaluator = build_evaluator(cfg, name, tmp_path)
    evaluator.reset()
    inputs, outputs = predict(name, rng)
    for output in outputs:
        boxes = mask_boxes(output["instances"].pred_masks)
        noise = torch.from_numpy(rng.normal(size=boxes.shape)).float()
        output["instances"].pred_boxes = Boxes(boxes + noise)
    evaluator.process(inputs, outputs)
    results, truth = evaluator.evaluate(), MetadataCatalog.get(name).json_file
    assert list(results) == ["bbox", "segm"]
    assert_equal(results["bbox"], official.coco_ap(truth, tmp_path / "coco_boxes_results.json", "bbox"))
    assert_equal(results["segm"], official.coco_ap(truth, tmp_path / "coco_instances_results.json"))
    first = json.loads((tmp_path / "coco_boxes_results.json").read_text())[0]
    assert set(first) == {"image_id", "category_id", "score", "bbox"}


@pytest.mark.parametrize("name", [n for n in COCO + CITYSCAPES if "panoptic" in n])
def test_pq_is_panopticapis(measure, name):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    metadata, results, folder = measure(name, seed=2)
    files = (metadata.panoptic_json, metadata.panoptic_root, folder / "panoptic_predictions.json")
    assert_equal(results["panoptic_seg"], official.panoptic_quality(evaluation.pq_compute, *files))


@pytest.mark.parametrize("name", [n for n in CITYSCAPES if "sem" not in n])
@pytest.mark.parametrize("seed", [3, 4])
def test_ap_is_cityscapesscripts(measure, name, seed):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    metadata, results, folder = measure(name, seed)
    expected = official.cityscapes_ap(evaluation, metadata.gt_dir, folder / "instance_predictions", Path())
    assert_equal(results["segm"], expected)
    assert results["segm"].keys() == expected.keys()


@pytest.mark.parametrize("name", [n for n in CITYSCAPES if "instance" not in n])
def test_iou_is_cityscapesscripts(measure, name):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    metadata, results, folder = measure(name, seed=5)
    expected = official.cityscapes_iou(evaluation, metadata.gt_dir, folder / "semantic_predictions")
    # It lists labels that never count, with NaN.
    lacking = {key: value for key, value in expected.items() if key not in results["sem_seg"]}
    assert all(math.isnan(value) for value in lacking.values())
    assert_equal(results["sem_seg"], {key: value for key, value in expected.items() if key not in lacking})
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["IoU"]


@pytest.mark.parametrize("name", ["coco_2017_val_panoptic_with_sem_seg", "ade20k_sem_seg_val", "ade20k_panoptic_val"])
def test_miou_of_the_files_is_the_definition(measure, name):
    _, results, folder = measure(name, seed=6)
    images = DatasetCatalog.get(name)
    files = [folder / "semantic_predictions" / f"{Path(image['file_name']).stem}.png" for image in images]
    labels = [np.asarray(Image.open(image["sem_seg_file_name"])).ravel() for image in images]
    # ADE20K's owners count from 1.
    predicted = [np.asarray(Image.open(path)).ravel() - int(name.startswith("ade20k")) for path in files]
    expected = official.mean_iou(np.concatenate(labels), np.concatenate(predicted), void=255)
    assert results["sem_seg"]["mIoU"] == pytest.approx(expected, abs=1e-9)
    assert 10 < expected < 95


def test_one_run_of_cityscapes_panoptic_gives_all_three(measure):
    _, results, folder = measure("cityscapes_fine_panoptic_val", seed=7)
    assert {(task, metric) for task, metrics in results.items() for metric in metrics} >= {
        ("panoptic_seg", "PQ"),
        ("segm", "AP"),
        ("sem_seg", "mIoU"),
    }
    json.dumps(results)  # plain numbers
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("frankfurt_000000_000019*")}
    assert {
        "instance_predictions/frankfurt_000000_000019_pred.txt",
        "instance_predictions/masks/frankfurt_000000_000019_000.png",
        "panoptic_predictions/frankfurt_000000_000019_leftImg8bit.png",
        "semantic_predictions/frankfurt_000000_000019_pred_labelIds.png",
    } <= names
