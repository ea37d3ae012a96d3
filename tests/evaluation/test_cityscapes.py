"""Cityscapes' definitions in the corners that miniature trees may miss: drawn at random, and worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from mask2former.evaluation import CityscapesAP, CityscapesIoU, EvaluationError, StreamingEvaluator
from mask2former.evaluation.cityscapes import GROUPS, INSTANCE_PIXELS, LABELS, THING_GROUPS, VOID_LABELS

from . import official

STUFF = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
THINGS = {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
NAMES = [name for group in GROUPS.values() for name in group]
SIZE = (60, 80)


@pytest.fixture
def city(tmp_path):
    """An empty data set: `add` gives it an image, from a map of instance ids."""
    name = "cityscapes_of_a_test"
    inputs = []
    DatasetCatalog.register(name, lambda: inputs)
    MetadataCatalog.get(name).set(
        gt_dir=str(tmp_path / "truth"),
        stuff_classes=NAMES,
        thing_classes=NAMES,
        stuff_dataset_id_to_contiguous_id=STUFF,
        thing_dataset_id_to_contiguous_id=THINGS,
    )

    def add(ids):
        stem = f"bern_{len(inputs):06d}_000019"
        folder = tmp_path / "truth" / "bern"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
        labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{stem}_gtFine_labelIds.png")
        inputs.append({"file_name": f"images/bern/{stem}_leftImg8bit.png"})

    def evaluate(metric, outputs):
        evaluator = StreamingEvaluator([metric(name)], tmp_path / "out")
        evaluator.reset()
        evaluator.process(inputs[: len(outputs)], outputs)
        return evaluator.evaluate()[metric.name]

    yield SimpleNamespace(root=tmp_path, add=add, evaluate=evaluate)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def instances(*found):
    """Of (pixels, class, score)."""
    result = Instances(SIZE)
    result.pred_masks = torch.from_numpy(np.stack([pixels for pixels, _, _ in found]))
    result.pred_classes = torch.tensor([category for _, category, _ in found])
    result.scores = torch.tensor([score for _, _, score in found])
    return {"instances": result}


def box(top, bottom, left, right):
    pixels = np.zeros(SIZE, bool)
    pixels[top:bottom, left:right] = True
    return pixels


def random_box(rng, largest):
    top, left = rng.integers(0, (SIZE[0] - 5, SIZE[1] - 5))
    height, width = rng.integers(3, largest, 2)
    return box(top, top + height, left, left + width)


def random_ids(rng):
    """Stuff, void, things of two classes small and large, crowds of each, and things that never count."""
    ids = np.kron(rng.choice([7, 11, 23, 0, 4, 9], (6, 8)), np.ones((10, 10), int))
    for number in range(8):
        ids[random_box(rng, 25)] = rng.choice([24000, 26000, 26000, 29000]) + number
    for crowd in (24, 26, 29):
        ids[random_box(rng, 15)] = crowd
    return ids


def moved(rng, pixels):
    return np.roll(pixels, rng.integers(-1, 2, 2), axis=(0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_random_scenes_measure_what_cityscapesscripts_measures(city, seed, monkeypatch):
    by_instance = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    by_pixel = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.chdir(city.root)
    rng = np.random.default_rng(seed)
    outputs = []
    for _ in range(5):
        ids = random_ids(rng)
        city.add(ids)
        found = [(random_box(rng, 20), rng.choice([11, 13]), rng.integers(1, 9) / 8) for _ in range(6)]
        for i in np.unique(ids[(ids >= 1000) | np.isin(ids, [24, 26])]).tolist():
            category = THINGS.get(i // 1000 if i >= 1000 else i, 11)
            found += [(moved(rng, ids == i), category, rng.integers(1, 9) / 8) for _ in range(rng.integers(0, 3))]
        output = instances(*found)
        labels = np.where(ids < 1000, ids, ids // 1000)
        classes = np.full(LABELS, 2)
        classes[list({**STUFF, **THINGS})] = list({**STUFF, **THINGS}.values())
        swapped = np.kron(rng.random((6, 8)) < 0.2, np.ones((10, 10), bool))
        predicted = np.where(swapped, rng.choice([0, 11, 13, 18]), classes[moved(rng, labels)])
        output["sem_seg"] = torch.from_numpy(predicted)
        outputs.append(output)

    found = city.evaluate(CityscapesAP, outputs)
    gt_dir = city.root / "truth"
    expected = official.cityscapes_ap(by_instance, gt_dir, city.root / "out" / "instance_predictions", city.root)
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert 1 < found["AP-person"] < 95
    assert 1 < found["AP-car"] < 95
    assert math.isnan(found["AP-bus"])

    found = city.evaluate(CityscapesIoU, outputs)
    expected = official.cityscapes_iou(by_pixel, gt_dir, city.root / "out" / "semantic_predictions")
    for name in found.keys() - {"mIoU"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
    assert 5 < found["iIoU-car"] < 95
    assert 5 < found["iIoU_sup-human"] < 95


def test_ap_by_hand(city):
    ids = np.full(SIZE, 7)
    ids[:20, :20] = 26000  # found with IoU 0.95
    ids[:20, 30:50] = 26001  # found twice
    ids[30:50, :20] = 26002  # missed
    ids[55:, 60:] = 0
    city.add(ids)
    # Scores of what is right, wrong and ignored (all on void).
    car = 13
    output = instances(
        (box(0, 19, 0, 20), car, 0.9),
        (box(0, 20, 30, 50), car, 0.8),
        (box(0, 20, 30, 50), car, 0.3),
        (box(55, 60, 60, 80), car, 1.0),
    )
    metrics = city.evaluate(CityscapesAP, [output])
    # Precision 2/3, 1, 1 and (artificially) 1 at recall 2/3, 2/3, 1/3, 0; each point stands for half the way to its
    # neighbours: 0, 1/6, 1/3, 1/6. At overlap 0.95 the first match is lost (its IoU is not above), and is wrong.
    at_low = 2 / 3 * 0 + 1 / 6 + 1 / 3 + 1 / 6
    # Then scores 0.3, 0.8, 0.9: precision 1/3, 1/2, 0 at recall 1/3, 1/3, 0, and 1 at recall 0.
    at_high = 1 / 3 * 0 + 1 / 2 * 1 / 6 + 0 + 0
    assert metrics["AP50-car"] == pytest.approx(100 * at_low)
    assert metrics["AP-car"] == pytest.approx(100 * (9 * at_low + at_high) / 10)
    assert metrics["AP"] == metrics["AP-car"]


def test_iou_by_hand(city):
    ids = np.full(SIZE, 7)
    ids[:, 40:] = 23
    ids[:10, :10] = 24000  # 100 pixels, half of them right
    ids[20:40, :10] = 24001  # 200 pixels, all right
    ids[50:, :] = 0  # does not count
    city.add(ids)
    classes = np.full(SIZE, 0)
    classes[:, 40:] = 10
    classes[:5, :10] = 11
    classes[5:10, :10] = 12  # a rider: human, too
    classes[20:40, :12] = 11  # 40 pixels of road
    metrics = city.evaluate(CityscapesIoU, [{"sem_seg": torch.from_numpy(classes)}])
    assert metrics["IoU-person"] == pytest.approx(100 * 250 / (300 + 40))
    assert metrics["IoU-rider"] == 0
    assert metrics["IoU-sky"] == 100
    weight = INSTANCE_PIXELS["person"]
    assert metrics["iIoU-person"] == pytest.approx(100 * 1.5 * weight / (2 * weight + 40))
    assert metrics["iIoU_sup-human"] == pytest.approx(100 * 2 * weight / (2 * weight + 40))
    assert metrics["IoU_sup-human"] == pytest.approx(100 * 300 / (300 + 40))
    assert math.isnan(metrics["IoU-car"])
    assert metrics["IoU"] == pytest.approx(np.mean([metrics[f"IoU-{n}"] for n in ("road", "sky", "person", "rider")]))


def test_the_tables_are_the_owners():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    counted = [label for label in labels.labels if not label.ignoreInEval]
    assert {label.name: label.category for label in counted} == {n: g for g, names in GROUPS.items() for n in names}
    assert {label.id for label in labels.labels if label.ignoreInEval and label.id >= 0} == set(VOID_LABELS)
    assert max(label.id for label in labels.labels) == LABELS - 1
    things = [g for g in GROUPS if all(label.hasInstances for label in labels.category2labels[g] if label.id >= 0)]
    assert tuple(things) == THING_GROUPS
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    sizes = evaluation.args.avgClassSize
    assert {label.name: sizes[label.name] for label in counted if label.hasInstances} == INSTANCE_PIXELS


@pytest.mark.parametrize("metric", [CityscapesAP, CityscapesIoU])
def test_bad_ground_truth_is_named(city, metric):
    output = instances((box(0, 9, 0, 9), 11, 0.5)) | {"sem_seg": torch.zeros(SIZE, dtype=torch.int64)}
    for _ in range(2):
        city.add(np.full(SIZE, 7))
    with pytest.raises(EvaluationError, match=r"truth: no prediction for 1 of 2 images: bern_000001_000019"):
        city.evaluate(metric, [output])
    folder = city.root / "truth" / "bern"
    path = folder / "bern_000000_000019_gtFine_instanceIds.png"
    Image.new("L", (70, 60)).save(path)
    with pytest.raises(EvaluationError, match=r"instanceIds\.png: \(60, 70\) pixels, the prediction has \(60, 80\)"):
        city.evaluate(metric, [output])
    path.unlink()
    with pytest.raises(EvaluationError, match=r"instanceIds\.png: no such file"):
        city.evaluate(metric, [output])


def test_ids_outside_the_table_are_named(city):
    city.add(np.full(SIZE, 34 * 1000 + 1))
    with pytest.raises(EvaluationError, match=r"instanceIds\.png: id 34001; expected at most 33999"):
        city.evaluate(CityscapesAP, [instances((box(0, 9, 0, 9), 11, 0.5))])
    with pytest.raises(EvaluationError, match=r"labelIds\.png .*has label 34; labels must be below num_classes \(34\)"):
        city.evaluate(CityscapesIoU, [{"sem_seg": torch.zeros(SIZE, dtype=torch.int64)}])
