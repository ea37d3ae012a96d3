"""Segments paired as by the official API, on many small images that have every corner of the definition."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from mask2former.evaluation import EvaluationError, PanopticQuality, StreamingEvaluator

from .conftest import CAT, DOG, NAMES, drawing
from .predictions import SEGMENT_IDS


def draw(rng):
    """Ids of cells, about a fifth void; several crowds, also of one category; some segments are not listed."""
    names = np.where(rng.random(len(SEGMENT_IDS)) < 0.2, 0, SEGMENT_IDS)
    cells = names[rng.integers(0, len(names), rng.integers(1, 9, 2))]
    listed = [int(i) for i in np.unique(cells) if i and rng.random() < 0.9]
    crowd = frozenset(i for i in listed if rng.random() < 0.25)
    classes = {i: int(rng.integers(len(NAMES))) for i in listed}
    return drawing.LabeledImage(cells.repeat(3, axis=0).repeat(4, axis=1), classes, crowd)


def add_false_segment(output, rng):
    """A segment on void, on crowds, or where others are."""
    ids, segments = output["panoptic_seg"]
    top, left = rng.integers(0, ids.shape)
    ids[top:, left:] = 1000
    segments.append({"id": 1000, "category_id": int(rng.integers(2)), "isthing": True})
    present = set(ids.unique().tolist())
    output["panoptic_seg"] = ids, [segment for segment in segments if segment["id"] in present]


def evaluate(dataset, folder=None):
    evaluator = StreamingEvaluator([PanopticQuality(dataset.name)], folder)
    evaluator.reset()
    evaluator.process(dataset.inputs, dataset.outputs)
    return evaluator.evaluate()["panoptic_seg"]


def official(evaluation, dataset, folder):
    metadata = MetadataCatalog.get(dataset.name)
    truth = json.loads((dataset.root / "panoptic.json").read_text())
    predicted = json.loads((folder / "panoptic_predictions.json").read_text())
    pairs = list(zip(truth["annotations"], predicted["annotations"], strict=True))
    categories = {category["id"]: category for category in truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluation.pq_compute_single_core(
            0, pairs, metadata.panoptic_root, str(folder / "panoptic_predictions"), categories
        ).pq_per_cat


def test_segments_are_paired_as_by_panopticapi(make_dataset, tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    rng = np.random.default_rng(0)
    dataset = make_dataset([draw(rng) for _ in range(300)], rng)
    for index, output in enumerate(dataset.outputs):
        if index % 20 == 0:
            output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
        elif rng.random() < 0.5:
            add_false_segment(output, rng)
    found = evaluate(dataset, tmp_path / "out")
    expected = official(evaluation, dataset, tmp_path / "out")
    seen = Counter()
    for category, name in NAMES.items():
        counts = expected[category]
        seen.update(matched=counts.tp, wrong=counts.fp, missed=counts.fn)
        segments = counts.tp + counts.fp / 2 + counts.fn / 2
        assert found[f"PQ-{name}"] == pytest.approx(100 * counts.iou / segments, abs=1e-9)
        assert found[f"SQ-{name}"] == pytest.approx(100 * counts.iou / counts.tp, abs=1e-9)
        assert found[f"RQ-{name}"] == pytest.approx(100 * counts.tp / segments, abs=1e-9)
    predicted = sum(len(output["panoptic_seg"][1]) for output in dataset.outputs)
    seen["ignored"] = predicted - seen["matched"] - seen["wrong"]
    seen["nothing predicted"] = sum(not output["panoptic_seg"][1] for output in dataset.outputs)
    several = (Counter(image.classes[i] for i in image.crowd) for image in dataset.images)
    seen["several crowds of one category"] = sum(any(n > 1 for n in crowds.values()) for crowds in several)
    assert len(seen) == 6 and min(seen.values()) >= 10, seen
    assert {segment["id"] for output in dataset.outputs for segment in output["panoptic_seg"][1]} >= set(SEGMENT_IDS)


def test_segments_without_pixels_and_areas_that_cannot_be_are_named(dataset):
    ids, segments = dataset.outputs[3]["panoptic_seg"]
    dataset.outputs[3]["panoptic_seg"] = ids, [*segments, {"id": 77, "category_id": 0, "isthing": True}]
    with pytest.raises(EvaluationError, match=r"image3\.png: image 53: predicted segment 77 is in segments_info but"):
        evaluate(dataset)
    # All right, so that a segment has more pixels in common with its prediction than its area says.
    classes = dataset.images[3].classes
    right = [{"id": i, "category_id": c, "isthing": c in (CAT, DOG)} for i, c in classes.items()]
    dataset.outputs[3]["panoptic_seg"] = torch.from_numpy(dataset.images[3].ids), right
    rows = json.loads((dataset.root / "panoptic.json").read_text())
    for segment in rows["annotations"][3]["segments_info"]:
        segment["area"] = 0
    (dataset.root / "panoptic.json").write_text(json.dumps(rows))
    with pytest.raises(
        EvaluationError, match=r"image3\.png: image 53: ground-truth segment \d+ states an area smaller"
    ):
        evaluate(dataset)


@pytest.mark.parametrize("wrong", [-1, 2**24])
def test_ids_that_a_png_cannot_hold_are_named(dataset, wrong):
    ids, segments = dataset.outputs[0]["panoptic_seg"]
    ids[0, 0] = wrong
    dataset.outputs[0]["panoptic_seg"] = ids, [*segments, {"id": wrong, "category_id": 0, "isthing": True}]
    with pytest.raises(EvaluationError, match=rf"image0\.png: segment ids from .*{wrong}.*; expected 0 to 16777215"):
        evaluate(dataset)


def test_pngs_may_have_an_alpha_channel(dataset):
    before = evaluate(dataset)
    for path in (dataset.root / "panoptic").iterdir():
        Image.open(path).convert("RGBA").save(path)
    assert json.dumps(evaluate(dataset)) == json.dumps(before)


def test_pngs_without_colors_or_cut_off_are_named(dataset):
    path = dataset.root / "panoptic" / "image1.png"
    colors = Image.open(path)
    colors.convert("L").save(path)
    with pytest.raises(EvaluationError, match=r"panoptic/image1\.png is Grayscale; the COCO panoptic format"):
        evaluate(dataset)
    colors.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EvaluationError, match=r"cannot decode panoptic PNG .*panoptic/image1\.png: "):
        evaluate(dataset)


def test_a_panoptic_map_may_be_of_any_integers(dataset):
    before = evaluate(dataset)
    for output in dataset.outputs:
        ids, segments = output["panoptic_seg"]
        output["panoptic_seg"] = ids.to(torch.int64), segments
    assert json.dumps(evaluate(dataset)) == json.dumps(before)
