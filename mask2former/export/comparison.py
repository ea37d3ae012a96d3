"""Compares outputs of an exported model with those of the model, and the results made of both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mask2former.maskformer_model import MaskFormer
from mask2former.modeling import inference
from mask2former.modeling.inference import Queries

from .numpy_postprocessing import ResizedMasks, Size, instances, panoptic, semantic, semantic_resized_last

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
# Of the padded input, of the image in it, and of the result.
Sizes = tuple[Size, Size, Size]

# Largest difference of mask logits, as a part of the range of all mask logits of an image.
TOLERANCE = 1e-3
# Where two segments are equally likely, or a mask is as likely as not, the last bits of the outputs decide, which no
# other program has in common with the model. Such a pixel of a panoptic map is left out: its two best probabilities, or
# that of the mask and 1/2, are no further apart than this.
MARGIN = 1e-4
# Of the other maps, the largest part of the pixels that differ, for the same reason.
UNDECIDED = 1e-4
# Instances of lower scores are not compared: the order of the many that are close to zero is chance.
_CONFIDENT = 0.5


@dataclass(frozen=True)
class Comparison:
    """What an export does to the outputs and results of one image.

    Attributes:
        name: of the image.
        mask_difference: the largest of mask logits, over their range.
        logit_difference: the largest of class logits, over their range.
        results: how many pixels differ in each kind of result, made in NumPy from the export and in PyTorch from the
            model; all, where the segments are not the same.
        undecided: pixels of the panoptic map that differ within `MARGIN`, not counted in `results`.
        pixels: of the image.
    """

    name: str
    mask_difference: float
    logit_difference: float
    results: Mapping[str, int]
    undecided: int
    pixels: int

    @property
    def passes(self) -> bool:
        """Whether outputs are close, and results equal but for the pixels that rounding decides."""
        allowed = {task: 0 if task == "panoptic" else UNDECIDED * self.pixels for task in self.results}
        return self.mask_difference < TOLERANCE and all(self.results[task] <= allowed[task] for task in allowed)


def compare(
    name: str, got: Outputs, expected: Outputs, sizes: Sizes, model: MaskFormer, description: Mapping[str, Any]
) -> Comparison:
    """Compare class logits [Q, K + 1] and mask logits [Q, h, w] of one image, and what is made of them.

    Args:
        name: of the image.
        got: outputs of the exported model.
        expected: outputs of the model.
        sizes: of the padded input, of the image in it, and of the result.
        model: makes results.
        description: see `describe`.
    """
    ours, theirs = portable_results(*got, sizes, description), model_results(model, *expected, sizes)
    results, undecided = differing(ours, theirs), 0
    if "panoptic" in results and results["panoptic"] < theirs["panoptic"].size:
        undecided = count_undecided(*expected, sizes, description, ours["panoptic"] != theirs["panoptic"])
        results["panoptic"] -= undecided
    return Comparison(
        name,
        mask_difference=_difference(got[1], expected[1]),
        logit_difference=_difference(got[0], expected[0]),
        results=results,
        undecided=undecided,
        pixels=sizes[2][0] * sizes[2][1],
    )


def count_undecided(
    logits: NDArray[np.float32],
    masks: NDArray[np.float32],
    sizes: Sizes,
    description: Mapping[str, Any],
    pixels: NDArray[np.bool_],
) -> int:
    """How many of some pixels [H, W] the model's own outputs leave to rounding in the panoptic map; see `MARGIN`."""
    scores, classes = torch.from_numpy(logits).softmax(-1).max(-1)
    kept = ((classes < logits.shape[1] - 1) & (scores > description["object_mask_threshold"])).nonzero()[:, 0]
    if not pixels.any() or len(kept) == 0:
        return 0
    resized = ResizedMasks(masks, *sizes)
    values = torch.from_numpy(np.stack([resized.whole(query)[pixels] for query in kept.tolist()])).sigmoid()
    best = (scores[kept, None] * values).topk(min(2, len(kept)), dim=0)
    held = values.gather(0, best.indices[:1])[0]
    close = (best.values[0] - best.values[-1] <= MARGIN) if len(kept) > 1 else torch.zeros_like(held, dtype=torch.bool)
    return int((close | ((held - 0.5).abs() <= MARGIN)).sum())


def portable_results(
    logits: NDArray[np.float32],
    masks: NDArray[np.float32],
    sizes: Sizes,
    description: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    """Results of all tasks as maps, by `numpy_postprocessing`: segment ids, classes, and counts of instances.

    Args:
        logits: [Q, K + 1].
        masks: [Q, h, w].
        sizes: of the padded input, of the image in it, and of the result.
        description: see `describe`.
    """
    resized = ResizedMasks(masks, *sizes)
    things = [i for i, entry in enumerate(description["classes"]) if entry["isthing"]]
    results: dict[str, NDArray[Any]] = {}
    if "panoptic" in description["tasks"]:
        thresholds = description["object_mask_threshold"], description["overlap_threshold"]
        results["panoptic"] = panoptic(logits, resized, things, *thresholds)[0]
    if "semantic" in description["tasks"]:
        last = not description["resize_masks_first"]
        results["semantic"] = semantic_resized_last(logits, masks, *sizes) if last else semantic(logits, resized)
    if "instance" in description["tasks"]:
        kept = things if "panoptic" in description["tasks"] else None
        found, _, scores = instances(logits, resized, description["detections_per_image"], kept)
        results["instance"] = found[scores >= _CONFIDENT].sum(axis=0)
    return results


def model_results(
    model: MaskFormer,
    logits: NDArray[np.float32],
    masks: NDArray[np.float32],
    sizes: Sizes,
) -> dict[str, NDArray[Any]]:
    """The same by the model's own post-processing."""
    queries = Queries(torch.from_numpy(logits), torch.from_numpy(masks), sizes[0], sizes[1])
    found = inference.run(queries, sizes[2], replace(model.inference_settings, semantic_scores=False))
    results: dict[str, NDArray[Any]] = {}
    if "panoptic_seg" in found:
        results["panoptic"] = found["panoptic_seg"][0].numpy()
    if "sem_seg" in found:
        results["semantic"] = found["sem_seg"].numpy()
    if "instances" in found:
        confident = found["instances"].scores >= _CONFIDENT
        results["instance"] = found["instances"].pred_masks[confident].sum(0).numpy()
    return results


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    difference = np.abs(got - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny)
    return float(difference) if np.isfinite(difference) else float("inf")


def differing(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Pixels that differ, per task; all, where one has a segment that the other has not."""
    return {
        task: int(np.count_nonzero(got[task] != value)) if _same_segments(got[task], value) else value.size
        for task, value in expected.items()
    }


def _same_segments(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    return np.array_equal(np.unique(got), np.unique(expected))
