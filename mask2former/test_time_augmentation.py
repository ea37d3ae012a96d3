"""Results averaged over scales and flips of an image.

Shapes:
    Q: queries; K: classes; N: queries or objects; H, W: height and width of a result; h, w: those of the grid on which
    masks are compared
"""

import copy
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .maskformer_model import MaskFormer, Prediction

# The decoder's masks have this stride; comparing them more finely would add nothing.
_STRIDE = 4
# Two masks show the same object if their Dice coefficient is at least this.
_SAME_OBJECT = 0.5


class SemanticSegmentorWithTTA(nn.Module):
    """Runs a model on every side of `TEST.AUG.MIN_SIZES`, with and without flip, and averages the class maps."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Wrap `model`, which returns `sem_seg`; `TEST.AUG` says how to augment."""
        super().__init__()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model = model
        self.image_format = cfg.INPUT.FORMAT
        self.augment = DatasetMapperTTA(cfg)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Take what the model takes for inference (`image` is read from `file_name` if missing).

        Returns:
            for each image a dict with `sem_seg` [K, height, width].
        """
        with _set(self.model, "semantic_scores", True):
            return [self._average(self._complete(inputs)) for inputs in batched_inputs]

    def _complete(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = copy.copy(inputs)
        if "image" not in inputs:
            image = detection_utils.read_image(inputs["file_name"], self.image_format)
            inputs["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        inputs.setdefault("height", inputs["image"].shape[1])
        inputs.setdefault("width", inputs["image"].shape[2])
        return inputs

    def _views(self, inputs: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
        """The augmented inputs, and whether each is flipped."""
        views = []
        for view in self.augment(inputs):
            transforms = view.pop("transforms").transforms
            views.append((view, any(isinstance(transform, HFlipTransform) for transform in transforms)))
        if not views:
            raise ValueError("TEST.AUG.MIN_SIZES is empty; expected at least one side length")
        return views

    def _average(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"sem_seg": _mean((self.model([view])[0]["sem_seg"], flipped) for view, flipped in self._views(inputs))}


class ModelWithTTA(SemanticSegmentorWithTTA):
    """Augmentation for everything that a `MaskFormer` has switched on.

    Class maps are averaged as above. Panoptic and instance results, which the papers have without augmentation, are our
    own: `merge_views` makes one prediction of all, and the results are made of it as of any other.
    """

    model: MaskFormer

    def _average(self, inputs: dict[str, Any]) -> dict[str, Any]:
        size = inputs["height"], inputs["width"]
        views = [(self.model.predict([view])[0], flipped) for view, flipped in self._views(inputs)]
        results: dict[str, Any] = {}
        if self.model.panoptic_on or self.model.instance_on:
            with _set(self.model, "semantic_on", False):
                results = self.model.postprocess(merge_views(views), size)
        if self.model.semantic_on:
            maps = ((self.model.semantic(prediction, size, scores=True), flipped) for prediction, flipped in views)
            results["sem_seg"] = _mean(maps)
        return results


def merge_views(views: Sequence[tuple[Prediction, bool]]) -> Prediction:
    """One prediction of several of the same image, each maybe flipped from left to right.

    Starting from the queries of the first view, the queries of each view are assigned one to one to the objects known
    so far, such that classes and masks agree best in total. Where a pair's masks have a Dice coefficient of at least
    0.5 they are the same object; any other query that has a class is a new one. The mask of an object is the mean over
    the views that have it; its class probabilities are the mean over all views, and those that lack it vote for "no
    object".
    """
    if len(views) == 1 and not views[0][1]:
        return views[0][0]
    # Masks are compared on the grid of the largest view.
    height, width = max((prediction.image_size for prediction, _ in views), key=lambda size: size[0] * size[1])
    grid = (-(-height // _STRIDE), -(-width // _STRIDE))
    classes, masks = _on_grid(*views[0], grid)
    seen = torch.ones_like(classes[:, 0])
    for view in views[1:]:
        new_classes, new_masks = _on_grid(*view, grid)
        objects, same = _assign(classes / seen[:, None], masks / seen[:, None, None], new_classes, new_masks)
        classes[objects[same]] += new_classes[same]
        masks[objects[same]] += new_masks[same]
        seen[objects[same]] += 1
        new = ~same & (new_classes.argmax(-1) != new_classes.shape[-1] - 1)
        classes, masks = torch.cat([classes, new_classes[new]]), torch.cat([masks, new_masks[new]])
        seen = torch.cat([seen, torch.ones_like(new_classes[new, 0])])
    classes[:, -1] += len(views) - seen
    masks = masks / seen[:, None, None]
    return Prediction((classes / len(views)).clamp(min=1e-12).log(), masks.logit(eps=1e-6), grid, grid)


def _on_grid(prediction: Prediction, flipped: bool, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Probabilities of classes [Q, K + 1] and of masks [Q, h, w], not flipped."""
    masks = torch.cat([strip.sigmoid() for _, strip in prediction.resized_masks(grid).strips()], 1)
    return prediction.logits.softmax(-1), masks.flip(-1) if flipped else masks


def _assign(classes: Tensor, masks: Tensor, new_classes: Tensor, new_masks: Tensor) -> tuple[Tensor, Tensor]:
    """For each new query the object that it is assigned to (0 if there are too few), and whether it is the same.

    All are probabilities: of classes [N, K + 1], of masks [N, h, w].
    """
    flat, new_flat = masks.flatten(1), new_masks.flatten(1)
    dice = 2 * (new_flat @ flat.T) / (new_flat.sum(1, keepdim=True) + flat.sum(1) + 1)
    agreement = new_classes.sqrt() @ classes.sqrt().T  # Bhattacharyya coefficients
    rows, columns = linear_sum_assignment((dice + agreement).cpu().numpy(), maximize=True)
    objects = torch.zeros(len(new_classes), dtype=torch.int64)
    assigned = torch.zeros(len(new_classes), dtype=torch.bool)
    objects[rows], assigned[rows] = torch.from_numpy(columns), True
    objects, assigned = objects.to(dice.device), assigned.to(dice.device)
    return objects, assigned & (dice.gather(1, objects[:, None])[:, 0] >= _SAME_OBJECT)


def _mean(maps: Iterable[tuple[Tensor, bool]]) -> Tensor:
    """Mean of maps [K, H, W], some of which are flipped."""
    upright = (class_map.flip(2) if flipped else class_map for class_map, flipped in maps)
    total, count = next(upright), 1
    for class_map in upright:
        total, count = total.add_(class_map), count + 1
    return total / count


@contextmanager
def _set(model: nn.Module, name: str, value: bool) -> Generator[None, None, None]:
    """Set an attribute for a while, if the model has it."""
    before = getattr(model, name, None)
    if before is not None:
        setattr(model, name, value)
    try:
        yield
    finally:
        if before is not None:
            setattr(model, name, before)
