import contextlib
import inspect
import io
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import (
    EvaluationError,
    InstanceAP,
    PanopticQuality,
    SemanticIoU,
    StreamingEvaluator,
    coco,
)

from .conftest import CAT, DOG, SEA, SKY


def run(metric, dataset, folder=None, batch=1):
    evaluator = metric
    if isinstance(metric, type):
        evaluator = StreamingEvaluator([metric(dataset.name)], folder)
    evaluator.reset()
    for first in range(0, len(dataset.inputs), batch):
        evaluator.process(dataset.inputs[first : first + batch], dataset.outputs[first : first + batch])
    return evaluator.evaluate()


def quality_by_definition(dataset):
    """PQ of each class as the paper defines it; void and crowd pixels do not count against a prediction."""
    iou, counts = Counter(), Counter()
    for truth, output in zip(dataset.images, dataset.outputs, strict=True):
        predicted, segments = output["panoptic_seg"]
        predicted = predicted.numpy()
        kinds = {s["id"]: s["category_id"] for s in segments}
        matched_truth, matched = set(), set()
        for t, kind in truth.classes.items():
            for p, predicted_kind in kinds.items():
                a, b = truth.ids == t, (predicted == p) & (truth.ids != 0)
                overlap = (a & b).sum() / (a | b).sum()
                if t not in truth.crowd and kind == predicted_kind and overlap > 0.5:
                    iou[kind] += overlap
                    counts[kind, "tp"] += 1
                    matched_truth.add(t)
                    matched.add(p)
        for t in truth.classes.keys() - matched_truth - truth.crowd:
            counts[truth.classes[t], "missed"] += 1
        for p in kinds.keys() - matched:
            crowd = [t for t in truth.crowd if truth.classes[t] == kinds[p]]
            ignored = np.isin(truth.ids[predicted == p], [0, *crowd]).mean()
            counts[kinds[p], "missed"] += ignored <= 0.5
    return {k: iou[k] / (counts[k, "tp"] + counts[k, "missed"] / 2) for k in (CAT, DOG, SKY, SEA)}


def test_panoptic_quality_is_the_papers(dataset, tmp_path):
    metrics = run(PanopticQuality, dataset, tmp_path / "out")["panoptic_seg"]
    expected = quality_by_definition(dataset)
    assert 0.1 < min(expected.values()) < max(expected.values()) < 1
    for kind, name in ((CAT, "cat"), (DOG, "dog"), (SKY, "sky"), (SEA, "sea")):
        assert metrics[f"PQ-{name}"] == pytest.approx(100 * expected[kind], abs=1e-9)
    assert math.isnan(metrics["PQ-sand"])
    assert metrics["PQ"] == pytest.approx(100 * np.mean(list(expected.values())), abs=1e-9)
    assert metrics["PQ_th"] == pytest.approx(50 * (expected[CAT] + expected[DOG]), abs=1e-9)
    assert metrics["PQ_st"] == pytest.approx(50 * (expected[SKY] + expected[SEA]), abs=1e-9)


def test_panoptic_files_are_what_the_official_api_reads(dataset, tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    metrics = run(PanopticQuality, dataset, tmp_path / "out")["panoptic_seg"]
    metadata = MetadataCatalog.get(dataset.name)
    with contextlib.redirect_stdout(io.StringIO()):
        official = evaluation.pq_compute(
            metadata.panoptic_json, str(tmp_path / "out" / "panoptic_predictions.json"), metadata.panoptic_root
        )
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            assert metrics[key.upper() + suffix] == pytest.approx(100 * official[group][key], abs=1e-9)


def test_nothing_found_is_zero_and_not_an_error(dataset):
    for output in dataset.outputs:
        output["panoptic_seg"] = (torch.zeros_like(output["panoptic_seg"][0]), [])
        output["instances"] = output["instances"][torch.zeros(len(output["instances"]), dtype=torch.bool)]
    assert run(PanopticQuality, dataset)["panoptic_seg"]["PQ"] == 0
    assert run(InstanceAP, dataset)["segm"]["AP"] == 0


@pytest.mark.parametrize(
    ("metric", "file"), [(PanopticQuality, "panoptic.json"), (InstanceAP, "instances.json"), (SemanticIoU, "labels")]
)
def test_images_that_were_not_predicted_are_an_error(dataset, metric, file):
    dataset.inputs = dataset.inputs[:2]
    dataset.outputs = dataset.outputs[:2]
    with pytest.raises(EvaluationError, match=rf"{re.escape(file)}: no prediction for 3 of 5 images: 52, 53, 54"):
        run(metric, dataset)


def test_images_that_share_a_name_are_an_error(dataset):
    dataset.inputs[1]["file_name"] = "elsewhere/image0.jpg"
    with pytest.raises(EvaluationError, match=r"several images share panoptic_predictions/image0\.png"):
        run(PanopticQuality, dataset)
    dataset.inputs[1]["image_id"] = dataset.inputs[0]["image_id"]
    with pytest.raises(EvaluationError, match="two images are called 50"):
        run(PanopticQuality, dataset)


def test_ground_truth_that_is_missing_damaged_or_of_another_size_is_named(dataset):
    rows = json.loads((dataset.root / "instances.json").read_text())
    rows["images"][3]["height"] = 40
    (dataset.root / "instances.json").write_text(json.dumps(rows))
    with pytest.raises(EvaluationError, match=r"instances\.json: image 53 is \(40, 64\), its prediction \(48, 64\)"):
        run(InstanceAP, dataset)
    del rows["images"][3]
    (dataset.root / "instances.json").write_text(json.dumps(rows))
    with pytest.raises(EvaluationError, match=r"instances\.json: no image 53"):
        run(InstanceAP, dataset)
    (dataset.root / "instances.json").write_text('{"images": []')
    with pytest.raises(EvaluationError, match=r"instances\.json: not COCO's format"):
        run(InstanceAP, dataset)
    (dataset.root / "instances.json").unlink()
    with pytest.raises(EvaluationError, match=r"instances\.json: no ground truth: No such file"):
        run(InstanceAP, dataset)

    Image.new("RGB", (64, 40)).save(dataset.root / "panoptic" / "image2.png")
    with pytest.raises(EvaluationError, match=r"panoptic/image2\.png: .*48.*64"):
        run(PanopticQuality, dataset)
    (dataset.root / "panoptic" / "image2.png").unlink()
    with pytest.raises(EvaluationError, match=r"panoptic/image2\.png: No such file"):
        run(PanopticQuality, dataset)
    (dataset.root / "panoptic.json").unlink()
    with pytest.raises(EvaluationError, match=r"panoptic\.json: no ground truth: No such file"):
        run(PanopticQuality, dataset)


def test_classes_are_as_good_as_scores(dataset):
    from_scores = run(SemanticIoU, dataset)
    for output in dataset.outputs:
        output["sem_seg"] = output["sem_seg"].argmax(dim=0).to(torch.int32)
    assert json.dumps(run(SemanticIoU, dataset)) == json.dumps(from_scores)


@pytest.mark.parametrize("labels", [None, [1, 2, 3, 4, 1000]])
def test_a_class_that_the_data_set_lacks_is_named(dataset, labels):
    if labels:
        MetadataCatalog.get(dataset.name).submission_labels = labels
    dataset.outputs[1]["sem_seg"] = torch.full_like(dataset.outputs[1]["sem_seg"][0], 5).long()
    with pytest.raises(EvaluationError, match=r"image1\.jpg: the model predicted class 5, which is no class here"):
        run(SemanticIoU, dataset)


def test_detections_are_one_list_with_images_in_lines(dataset, tmp_path):
    for number in (0, 2, 4):
        dataset.outputs[number]["instances"] = dataset.outputs[number]["instances"][:0]
    run(InstanceAP, dataset, tmp_path)
    text = (tmp_path / "coco_instances_results.json").read_text()
    found = [detection["image_id"] for detection in json.loads(text)]
    expected = [(image["image_id"], len(dataset.outputs[i]["instances"])) for i, image in enumerate(dataset.inputs)]
    assert found == [key for key, count in sorted(expected) for _ in range(count)]
    assert len(text.splitlines()) == sum(count > 0 for _, count in expected) == 2


def test_class_maps_are_written_in_the_owners_labels(dataset, tmp_path):
    run(SemanticIoU, dataset, tmp_path)
    predicted = dataset.outputs[2]["sem_seg"].argmax(dim=0).numpy()
    written = tmp_path / "semantic_predictions" / "image2.png"
    assert np.array_equal(np.asarray(Image.open(written)), predicted)
    MetadataCatalog.get(dataset.name).submission_labels = [1, 2, 3, 4, 1000]
    run(SemanticIoU, dataset, tmp_path)
    assert np.array_equal(np.asarray(Image.open(written)), np.array([1, 2, 3, 4, 1000])[predicted])
    vars(MetadataCatalog.get(dataset.name))["submission_labels"] = [1, 2]
    with pytest.raises(EvaluationError, match="2 submission_labels for 5 classes"):
        run(SemanticIoU, dataset, tmp_path)


def test_average_precision_is_pycocotools(dataset, tmp_path):
    metrics = run(InstanceAP, dataset, tmp_path, batch=2)["segm"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get(dataset.name).json_file)
        official = COCOeval(truth, truth.loadRes(str(tmp_path / "coco_instances_results.json")), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    assert 5 < metrics["AP"] < 95
    for value, name in zip(official.stats, ("AP", "AP50", "AP75", "APs", "APm", "APl"), strict=False):
        assert metrics[name] == 100 * value if value >= 0 else math.isnan(metrics[name])
    for position, name in enumerate(("cat", "dog")):
        assert metrics[f"AP-{name}"] == 100 * np.mean(official.eval["precision"][:, :, position, 0, -1])


def test_class_iou_is_the_definition(dataset):
    metrics = run(SemanticIoU, dataset, batch=3)["sem_seg"]
    labels = np.stack([np.asarray(Image.open(dataset.root / "labels" / f"image{i}.png")) for i in range(5)])
    predicted = np.stack([output["sem_seg"].argmax(0).numpy() for output in dataset.outputs])
    known = labels != 255
    ious = []
    for k, name in enumerate(("cat", "dog", "sky", "sea")):
        a, b = (labels == k) & known, (predicted == k) & known
        ious.append(100 * (a & b).sum() / (a | b).sum())
        assert metrics[f"IoU-{name}"] == pytest.approx(ious[-1], abs=1e-9)
        assert metrics[f"ACC-{name}"] == pytest.approx(100 * (a & b).sum() / a.sum(), abs=1e-9)
    assert math.isnan(metrics["IoU-sand"])
    assert metrics["mIoU"] == pytest.approx(np.mean(ious), abs=1e-9)
    assert metrics["pACC"] == pytest.approx(100 * (predicted == labels)[known].mean(), abs=1e-9)


@pytest.mark.skipif(
    "sem_seg_loading_fn" not in inspect.signature(SemSegEvaluator).parameters,
    reason="the evaluator of Detectron2 0.6 needs an older NumPy",
)
def test_class_iou_is_detectron2s(dataset):
    metrics = run(SemanticIoU, dataset)["sem_seg"]
    reference = SemSegEvaluator(
        dataset.name, sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path)).astype(dtype)
    )
    expected = run(reference, dataset)["sem_seg"]
    for name in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((48, 64), 5, np.uint8), r"has label 5; labels must be below num_classes \(5\)"),
        (np.zeros((48, 64, 3), np.uint8), "is Rgb; a class-id map is single-channel"),
        (np.zeros((40, 64), np.uint8), r"is 64×40 but .*semantic_predictions/image1\.png is 64×48"),
        (None, "Invalid PNG signature"),
    ],
)
def test_bad_label_files_are_named(dataset, labels, message):
    path = dataset.root / "labels" / "image1.png"
    path.write_bytes(b"no picture")
    if labels is not None:
        Image.fromarray(labels).save(path)
    with pytest.raises(EvaluationError, match=rf"labels/image1\.png.*{message}"):
        run(SemanticIoU, dataset)


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("labels", [2, 6])
def test_of_many_label_files_the_bad_one_is_named(cores, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "available_cores", lambda: cores)
    rng, pairs, expected = np.random.default_rng(0), [], np.zeros((2, labels), np.int64)
    for number in range(50):
        truth, predicted = (rng.integers(0, most, (4, 6)).astype(np.uint8) for most in (2, labels))
        pairs.append((tmp_path / f"truth{number}.png", tmp_path / f"predicted{number}.png"))
        for path, pixels in zip(pairs[-1], (truth, predicted), strict=True):
            Image.fromarray(pixels).save(path)
        np.add.at(expected, (truth, predicted), 1)
    assert np.array_equal(coco.count_pixels(pairs, 2, labels, void=None), expected)
    Image.fromarray(np.full((4, 6), 5, np.uint8)).save(pairs[37][0])
    with pytest.raises(EvaluationError, match=r"truth37\.png.*5"):
        coco.count_pixels(pairs, 2, labels, void=None)


def test_segments_that_are_not_listed_and_unknown_categories_are_named(dataset):
    ids, segments = dataset.outputs[3]["panoptic_seg"]
    dataset.outputs[3]["panoptic_seg"] = (ids, segments[1:])
    number = segments[0]["id"]
    with pytest.raises(
        EvaluationError, match=rf"image3\.png: image 53: predicted segment {number} is in the PNG but not"
    ):
        run(PanopticQuality, dataset)
    dataset.outputs[3]["panoptic_seg"] = (ids, segments)
    rows = json.loads((dataset.root / "panoptic.json").read_text())
    (dataset.root / "panoptic.json").write_text(
        json.dumps({**rows, "categories": [c for c in rows["categories"] if c["id"] != 11]})
    )
    with pytest.raises(EvaluationError, match=r"panoptic\.json: no categories \[11\], which were predicted"):
        run(PanopticQuality, dataset)
    for annotation in rows["annotations"]:
        for segment in annotation["segments_info"]:
            del segment["category_id"]
    (dataset.root / "panoptic.json").write_text(json.dumps(rows))
    with pytest.raises(
        EvaluationError, match=r"panoptic\.json: annotations\[0\]: segments_info\[0\]: category_id is missing"
    ):
        run(PanopticQuality, dataset)
