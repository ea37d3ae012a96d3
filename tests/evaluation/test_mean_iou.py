"""mIoU by the definition that each kind of model was published with, against a few lines of NumPy."""

import warnings

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.evaluation import build_evaluator
from mask2former.tasks import ARCHITECTURES

from .test_build import config

VOID = V = 255
CLASSES = 5
# Of the first image (labels, predictions) and of the second, six pixels each.
CASES = {
    "every class occurs": ([0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 1], [4, 3, 2, 1, 0, 0], [4, 4, 2, 2, 0, 0]),
    "a class is absent and not predicted": ([0, 1, 2, 3, 3, 0], [0, 1, 2, 3, 0, 1], [1] * 6, [1, 1, 1, 2, 2, 3]),
    "a class is absent but predicted": ([0, 1, 2, 3, 3, 0], [4, 1, 2, 3, 0, 1], [1] * 6, [1, 4, 4, 2, 2, 3]),
    "an absent class is predicted in ignored pixels": ([0, 1, V, V, 2, 3], [0, 2, 4, 4, 2, 3], [0] * 6, [0] * 6),
    "an occurring class is predicted in ignored pixels": ([0, 1, V, V, 2, 3], [0, 1, 1, 2, 2, 3], [0] * 6, [4] * 6),
    "a class is never right": ([0, 0, 1, 1, 2, V], [1, 1, 0, 0, 2, 2], [3, 3, 3, 3, 4, 4], [4, 4, 3, 3, 2, 2]),
    "all pixels are ignored": ([VOID] * 6, [0, 1, 2, 3, 4, 0], [VOID] * 6, [0] * 6),
}  # fmt: skip


def of_detectron2(labels, predicted):
    """IoU of each class as in Detectron2's SemSegEvaluator: only of classes that occur."""
    iou = np.full(CLASSES, np.nan)
    for k in np.unique(labels):
        iou[k] = ((labels == k) & (predicted == k)).sum() / ((labels == k) | (predicted == k)).sum()
    return iou


def of_mmsegmentation(labels, predicted):
    """IoU of each class as in mmsegmentation 0.20: total intersection by total union, whatever occurs."""
    intersection, of_label, of_prediction = (
        np.bincount(values, minlength=CLASSES) for values in (labels[labels == predicted], labels, predicted)
    )
    with np.errstate(invalid="ignore"):
        return intersection / (of_label + of_prediction - intersection)


# By meta-architecture.
DEFINITIONS = {"MaskFormer": of_detectron2, "PixelClassifier": of_mmsegmentation}


def test_each_architecture_that_predicts_pixels_has_a_definition():
    predict = {name for name, row in ARCHITECTURES.items() if row.tasks is None or "semantic" in row.tasks}
    assert predict == DEFINITIONS.keys()


@pytest.fixture
def evaluate(tmp_path):
    """Metrics of the models of an architecture on pairs of labels and predictions."""
    name = "labels_of_a_test"

    def run(architecture, pairs):
        images = []
        for number, (labels, _) in enumerate(pairs):
            image = {"file_name": str(tmp_path / f"{number}.jpg"), "sem_seg_file_name": str(tmp_path / f"{number}.png")}
            Image.fromarray(np.array(labels, np.uint8)[None]).save(image["sem_seg_file_name"])
            images.append(image)
        DatasetCatalog.register(name, lambda: images)
        entries = {"evaluator_type": "sem_seg", "sem_seg_root": str(tmp_path), "ignore_label": VOID}
        MetadataCatalog.get(name).set(**entries, stuff_classes=[f"c{k}" for k in range(CLASSES)])
        cfg = config("SEMANTIC")
        cfg.MODEL.META_ARCHITECTURE = architecture
        evaluator = build_evaluator(cfg, name)
        evaluator.reset()
        evaluator.process(images, [{"sem_seg": torch.tensor([predicted])} for _, predicted in pairs])
        return evaluator.evaluate()["sem_seg"]

    yield run
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("architecture", DEFINITIONS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_reference(architecture, case, evaluate):
    first, first_predicted, second, second_predicted = CASES[case]
    found = evaluate(architecture, [(first, first_predicted), (second, second_predicted)])
    labels, predicted = np.array(first + second), np.array(first_predicted + second_predicted)
    labels, predicted = labels[labels != VOID], predicted[labels != VOID]
    iou = DEFINITIONS[architecture](labels, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing is measured
        expected = 100 * np.nanmean(iou)
    assert found["mIoU"] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert [found[f"IoU-c{k}"] for k in range(CLASSES)] == pytest.approx(list(100 * iou), abs=1e-9, nan_ok=True)


def test_the_definitions_differ_where_an_absent_class_is_predicted(evaluate):
    """And only in the IoU: accuracies are over the classes that occur in both."""
    first, first_predicted, second, second_predicted = CASES["a class is absent but predicted"]
    pairs = [(first, first_predicted), (second, second_predicted)]
    results = {}
    for architecture in DEFINITIONS:
        results[architecture] = evaluate(architecture, pairs)
        DatasetCatalog.remove("labels_of_a_test")
    DatasetCatalog.register("labels_of_a_test", list)
    of_mask2former, of_upernet = results["MaskFormer"], results["PixelClassifier"]
    differing = {key for key, value in of_mask2former.items() if of_upernet[key] != pytest.approx(value, nan_ok=True)}
    assert differing == {"mIoU", "IoU-c4"}
    assert of_upernet["IoU-c4"] == 0 and np.isnan(of_mask2former["IoU-c4"])
    assert of_upernet["mIoU"] == pytest.approx(4 / 5 * of_mask2former["mIoU"])
