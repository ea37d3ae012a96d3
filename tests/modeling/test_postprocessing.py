"""Post-processing against direct, slow transcriptions of the definitions."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mask2former.modeling.inference import (
    InferenceSettings,
    InstanceResult,
    PanopticResult,
    PixelScores,
    Queries,
    make_results,
    mask_boxes,
    run,
)
from mask2former.modeling.mask_resizing import ResizedMasks, first_largest

aten = torch.ops.aten
QUERIES, CLASSES, SIZE = 12, 6, (24, 31)
THINGS = frozenset({0, 1, 2})


def predictions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Confident predictions with overlapping, smooth masks, so that every rule of the definitions bites."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
    coarse = 6 * torch.randn(1, QUERIES, 4, 4, generator=generator)
    return logits, torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear", align_corners=False)[0]


def in_groups(masks: torch.Tensor) -> ResizedMasks:
    """Masks that are looked at two rows at a time."""
    return ResizedMasks(masks, values_at_once=16 * QUERIES * SIZE[1])


def panoptic(logits, masks, things, object_threshold, overlap_threshold):
    settings = InferenceSettings(("panoptic",), object_threshold, overlap_threshold, thing_ids=frozenset(things))
    return make_results(logits, masks, settings)["panoptic_seg"]


def instances(logits, masks, detections, things=None):
    settings = InferenceSettings(("instance",), detections_per_image=detections, thing_ids=things)
    return make_results(logits, masks, settings)["instances"]


def direct_panoptic(logits, masks, object_threshold, overlap_threshold):
    """The definition, one query and one pixel set at a time."""
    scores, classes = logits.softmax(-1).max(-1)
    keep = [q for q in range(QUERIES) if classes[q] != CLASSES and scores[q] > object_threshold]
    result, segments, stuff = torch.zeros(SIZE, dtype=torch.int32), [], {}
    if not keep:
        return result, segments
    winner = torch.stack([scores[q] * masks[q].sigmoid() for q in keep]).argmax(0)
    for position, query in enumerate(keep):
        own = masks[query].sigmoid() >= 0.5
        won = winner == position
        pixels = won & own
        if pixels.sum() == 0 or won.sum() / own.sum() < overlap_threshold:
            continue
        category = int(classes[query])
        if category not in THINGS and category in stuff:
            result[pixels] = stuff[category]
            continue
        segments.append({"id": len(segments) + 1, "isthing": category in THINGS, "category_id": category})
        result[pixels] = len(segments)
        if category not in THINGS:
            stuff[category] = len(segments)
    return result, segments


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.5), (0.7, 0.8), (1.0, 0.8)])
def test_panoptic_equals_the_definition(seed, thresholds):
    logits, masks = predictions(seed)
    expected, expected_segments = direct_panoptic(logits, masks, *thresholds)
    result, segments = panoptic(logits, in_groups(masks), THINGS, *thresholds)
    assert torch.equal(result, expected)
    assert [{k: v for k, v in segment.items() if k != "score"} for segment in segments] == expected_segments
    assert set(result.unique().tolist()) - {0} == {segment["id"] for segment in segments}


def test_rules_of_panoptic_bite_in_these_examples():
    """Otherwise the test above would prove little: stuff merges, segments are dropped and thresholds matter."""
    merged = dropped = filtered = False
    for seed in range(8):
        logits, masks = predictions(seed)
        _, loose = panoptic(logits, in_groups(masks), THINGS, 0.0, 0.0)
        _, strict = panoptic(logits, in_groups(masks), THINGS, 0.0, 0.8)
        _, sure = panoptic(logits, in_groups(masks), THINGS, 0.7, 0.0)
        _, all_things = panoptic(logits, in_groups(masks), range(CLASSES), 0.0, 0.0)
        dropped |= len(strict) < len(loose)
        filtered |= len(sure) < len(loose)
        merged |= len(loose) < len(all_things)
    assert merged and dropped and filtered


@pytest.mark.parametrize("seed", range(3))
def test_semantic_equals_the_definition(seed):
    logits, masks = predictions(seed)
    probabilities = logits.softmax(-1)
    expected = torch.zeros(CLASSES, *SIZE)
    for query in range(QUERIES):
        for category in range(CLASSES):
            expected[category] += probabilities[query, category] * masks[query].sigmoid()
    scores = make_results(logits, in_groups(masks), InferenceSettings(("semantic",)))["sem_seg"]
    torch.testing.assert_close(scores, expected)
    classes = make_results(logits, in_groups(masks), InferenceSettings(("semantic",), semantic_scores=False))
    assert torch.equal(classes["sem_seg"], scores.argmax(0))


@pytest.mark.parametrize("classes", [None, THINGS])
def test_instances_equal_the_definition(classes):
    logits, masks = predictions(1)
    probabilities = logits.softmax(-1)[:, :-1]
    pairs = sorted(((float(probabilities[q, c]), q, c) for q in range(QUERIES) for c in range(CLASSES)), reverse=True)
    expected = []
    for score, query, category in pairs[:20]:
        if classes is None or category in classes:
            mask = masks[query] > 0
            inside = float(masks[query].sigmoid()[mask].sum() / (mask.sum() + 1e-6))
            expected.append((score * inside, category, int(mask.sum())))
    expected.sort(reverse=True)
    result = instances(logits, in_groups(masks), 20, classes)
    assert result.scores.tolist() == pytest.approx([e[0] for e in expected], rel=1e-5)
    assert result.pred_classes.tolist() == [e[1] for e in expected]
    assert result.pred_masks.sum((1, 2)).tolist() == [e[2] for e in expected]
    assert result.image_size == SIZE
    assert len(result) == len(result.pred_boxes)


def test_more_detections_than_pairs_are_harmless():
    logits, masks = predictions(0)
    assert len(instances(logits, in_groups(masks), QUERIES * CLASSES + 5)) == QUERIES * CLASSES


def test_the_first_of_several_largest_is_found():
    maps = torch.randint(-2, 3, (40, 3, 31), generator=torch.Generator().manual_seed(0)).float()
    assert first_largest(maps).tolist() == maps.numpy().argmax(0).tolist()
    # Some index, not one that is out of range.
    assert first_largest(torch.full((4, 2, 2), torch.nan)).max() < 4


def test_boxes_are_tight_and_empty_masks_have_zeros():
    masks = torch.zeros(4, 8, 10, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 7, 0] = True
    masks[3] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 9, 5], [0, 7, 1, 8], [0, 0, 0, 0], [0, 0, 10, 8]]


class Waits(TorchDispatchMode):
    """Counts operators that wait for a device: they copy to the host, or the size of their result depends on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = tree_leaves(args[1:]) if func is aten.index.Tensor else []
        masked = any(index.dtype == torch.bool for index in indices if index is not None)
        sized_by_values = (aten.nonzero, aten.masked_select, aten._unique2, aten.bincount)
        self.count += masked or func.overloadpacket in (aten._local_scalar_dense, *sized_by_values)
        return func(*args, **(kwargs or {}))


SETTINGS = InferenceSettings(
    tasks=("semantic", "panoptic", "instance"),
    object_mask_threshold=0.6,
    overlap_threshold=0.1,
    detections_per_image=5,
    thing_ids=THINGS,
)


def test_loops_do_not_wait_for_the_device():
    """Neither the number of queries nor that of strips matters."""
    logits, masks = predictions(2)
    counts = []
    for rows in (1, 3, SIZE[0]):
        # A strip is an eighth of what may be made at once.
        with Waits() as waits:
            make_results(logits, ResizedMasks(masks, values_at_once=8 * rows * QUERIES * SIZE[1]), SETTINGS)
        counts.append(waits.count)
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(
    "tasks",
    [("semantic", "panoptic", "instance"), ("panoptic", "instance"), ("instance", "panoptic"), ("panoptic",), ()],
)
def test_results_of_one_pass_are_those_of_passes_of_their_own(tasks):
    """Whichever queries each of them uses."""
    logits, masks = predictions(4)
    panoptic_queries = PanopticResult(logits, SIZE, SETTINGS).queries.tolist()
    instance_queries = InstanceResult(logits, SIZE, SETTINGS).queries.tolist()
    assert 0 < len(panoptic_queries) < QUERIES
    assert 0 < len(instance_queries) < QUERIES
    assert panoptic_queries != instance_queries
    settings = replace(SETTINGS, tasks=tasks)
    together = make_results(logits, in_groups(masks), settings)
    alone = [make_results(logits, in_groups(masks), replace(SETTINGS, tasks=(task,))) for task in tasks]
    assert list(together) == [key for result in alone for key in result]
    expected = {key: value for result in alone for key, value in result.items()}
    if "semantic" in tasks:
        assert torch.equal(together["sem_seg"], expected["sem_seg"])
    if "panoptic" in tasks:
        assert torch.equal(together["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert together["panoptic_seg"][1] == expected["panoptic_seg"][1] != []
    if "instance" in tasks:
        assert torch.equal(together["instances"].pred_masks, expected["instances"].pred_masks)
        # Sums over strips of other heights.
        torch.testing.assert_close(together["instances"].scores, expected["instances"].scores, rtol=1e-6, atol=0)


def test_nothing_is_found_where_no_query_counts():
    logits, masks = predictions(0)
    settings = replace(SETTINGS, tasks=("panoptic", "instance"), object_mask_threshold=1.0, thing_ids=frozenset())
    results = make_results(logits, in_groups(masks), settings)
    assert results["panoptic_seg"][1] == [] and not results["panoptic_seg"][0].any()
    assert results["instances"].pred_masks.shape == (0, *SIZE)
    assert len(results["instances"].pred_boxes) == 0


@pytest.mark.parametrize("masks_first", [True, False])
def test_run_makes_every_task_at_the_requested_size_and_changes_nothing(masks_first):
    logits, masks = predictions(3)
    queries = Queries(logits.clone(), masks.clone(), (96, 124), (90, 100))
    settings = replace(SETTINGS, resize_masks_first=masks_first)
    first, again = run(queries, (45, 50), settings), run(queries, (45, 50), settings)
    assert set(first) == {"sem_seg", "panoptic_seg", "instances"}
    assert first["sem_seg"].shape == (CLASSES, 45, 50)
    assert first["panoptic_seg"][0].shape == first["instances"].pred_masks.shape[1:] == (45, 50)
    assert torch.equal(first["sem_seg"], again["sem_seg"])
    classes = run(queries, (45, 50), replace(settings, tasks=("semantic",), semantic_scores=False))["sem_seg"]
    assert (classes != first["sem_seg"].argmax(0)).float().mean() < 1e-3
    assert torch.equal(queries.logits, logits) and torch.equal(queries.masks, masks)
    with pytest.raises(FrozenInstanceError):
        settings.tasks = ()


def test_classes_of_pixels_are_the_most_probable_ones_without_probabilities(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    output = PixelScores(torch.randn(30, 9, 12, generator=generator) * 5, (36, 48))
    for size in ((36, 48), (61, 90), (20, 30)):
        expected = run(output, size, InferenceSettings())["sem_seg"].argmax(0)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "softmax", None)
            classes = run(output, size, InferenceSettings(semantic_scores=False))["sem_seg"]
        assert classes.dtype == torch.int64 and torch.equal(classes, expected)
