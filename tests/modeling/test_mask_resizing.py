"""Masks made a few at a time against all of them at once."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mask2former.modeling.inference import InferenceSettings, make_results
from mask2former.modeling.mask_resizing import Resize, ResizedMasks, class_map

QUERIES, CLASSES = 40, 9
SETTINGS = InferenceSettings(
    tasks=("panoptic", "instance", "semantic"),
    object_mask_threshold=0.3,
    overlap_threshold=0.05,
    detections_per_image=60,
    thing_ids=frozenset({0, 1, 2}),
)
# Logits are up to 20, and PyTorch's own interpolation differs in the last bit with the number of maps.
TOLERANCE = 1e-5
# Crop and size of each step: up (x 4, then 2.3), down, the same size, and cropping alone.
CASES = {
    "up": [((24, 32), (96, 128)), ((90, 117), (207, 269))],
    "down": [((24, 32), (96, 128)), ((90, 117), (31, 40))],
    "one step": [((20, 31), (97, 55))],
    "crop alone": [((24, 32), (96, 128)), ((90, 117), (90, 117))],
    "nothing": [],
    "same size": [((24, 32), (24, 32))],
    "wider, not higher": [((24, 32), (24, 77))],
}


class LargestTensor(TorchDispatchMode):
    """Remembers how many floating-point values the largest tensor made has."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.values = max(self.values, leaf.numel())
        return result


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
    coarse = 6 * torch.randn(1, QUERIES, 5, 5, generator=generator)
    return logits, F.interpolate(coarse, (24, 32), mode="bicubic")[0]


def at_once(masks: torch.Tensor, steps: list[Resize]) -> torch.Tensor:
    for (height, width), size in steps:
        masks = F.interpolate(masks[None, :, :height, :width], size, mode="bilinear", align_corners=False)[0]
    return masks


@pytest.mark.parametrize("values_at_once", [1, 60_000, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_resized_masks_are_those_made_at_once(case, values_at_once):
    steps = [Resize(*step) for step in CASES[case]]
    _, masks = predictions()
    expected = at_once(masks, steps)
    resized = ResizedMasks(masks, steps, values_at_once)
    assert resized.size == tuple(expected.shape[1:])
    queries = torch.tensor([5, 0, 39, 5])
    chosen = torch.cat([strip for _, strip in resized.strips(queries)], 1)
    torch.testing.assert_close(chosen, expected[queries], rtol=0, atol=TOLERANCE)
    strips = list(resized.strips())
    torch.testing.assert_close(torch.cat([maps for _, maps in strips], 1), expected, rtol=0, atol=TOLERANCE)
    assert [i for rows, _ in strips for i in range(resized.size[0])[rows]] == list(range(resized.size[0]))
    assert torch.equal(class_map(resized), expected.argmax(0))


@pytest.mark.parametrize("case", ["up", "down", "crop alone"])
def test_results_are_those_of_the_direct_formulas(case):
    steps = [Resize(*step) for step in CASES[case]]
    logits, masks = predictions()
    whole = ResizedMasks(at_once(masks, steps), values_at_once=10**9)
    pieces = ResizedMasks(masks, steps, values_at_once=30_000)

    found, expected = make_results(logits, pieces, SETTINGS), make_results(logits, whole, SETTINGS)
    ids, segments = found["panoptic_seg"]
    assert torch.equal(ids, expected["panoptic_seg"][0])
    assert segments == expected["panoptic_seg"][1]
    assert len(segments) > 3

    instances = found["instances"]
    assert torch.equal(instances.pred_masks, expected["instances"].pred_masks)
    torch.testing.assert_close(instances.scores, expected["instances"].scores, rtol=1e-6, atol=0)
    assert torch.equal(instances.pred_classes, expected["instances"].pred_classes)
    # More instances than queries: some masks are used twice.
    assert len(instances) > len(set(map(tuple, instances.pred_masks.flatten(1).int().tolist())))

    # Interpolated as two sums instead of one, see `ResizedMasks.strips`.
    direct = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], at_once(masks, steps).sigmoid())
    torch.testing.assert_close(found["sem_seg"], direct, rtol=2e-6, atol=2e-6)
    classes = make_results(logits, pieces, replace(SETTINGS, tasks=("semantic",), semantic_scores=False))
    assert torch.equal(classes["sem_seg"], direct.argmax(0))


def test_masks_of_all_queries_are_never_held_at_full_size():
    logits, masks = predictions()
    size = (150, 200)
    steps = [Resize((24, 32), (96, 128)), Resize((90, 117), size)]
    resized = ResizedMasks(masks, steps, values_at_once=2 * size[0] * size[1])
    with LargestTensor() as largest:
        make_results(logits, resized, replace(SETTINGS, object_mask_threshold=0.0, semantic_scores=False))
    # A strip of rows has a row of overlap at either side, and the rest of a division.
    assert largest.values <= 2.2 * size[0] * size[1]
    assert largest.values < QUERIES * size[0] * size[1] / 10
