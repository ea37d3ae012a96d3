"""Test-time augmentation: results averaged over scales and flips of an image.

Shapes:
    Q: queries; K: classes; N: queries or objects; H, W: height and width of a result; h, w: height and width of the
    grid on which masks are compared
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .config import ConfigError
from .data.image_io import configured_range, read_image
from .data.resizing import OpenCVResize, ResizeInside, ResizeShortestEdge, build_resize_kind, size_inside
from .modeling import inference
from .modeling.inference import InferenceSettings, PixelScores, Queries
from .modeling.mask_resizing import Size, first_largest
from .tasks import ARCHITECTURES, architecture_of, architecture_of_model

# Stride of the decoder's masks; a finer comparison would add nothing.
_STRIDE = 4
# Two masks show the same object if their Dice coefficient is at least this.
_SAME_OBJECT = 0.5


# An input of the model for each view of an image, and whether it is flipped from left to right.
Views = list[tuple[dict[str, Any], bool]]


class ViewsOfInput:
    """Detectron2's views: the input of the model, resized once more by Pillow."""

    needs_original = False

    def __init__(self, cfg: CfgNode) -> None:
        """Read `TEST.AUG`."""
        self._augment = DatasetMapperTTA(cfg)

    def __call__(self, inputs: Mapping[str, Any]) -> Views:
        """Return the views of a complete input."""
        views = []
        for view in self._augment(inputs):
            transforms = view.pop("transforms").transforms
            views.append((view, any(isinstance(transform, HFlipTransform) for transform in transforms)))
        return views


@dataclass(frozen=True)
class ViewsOfOriginal:
    """The views of the published UPerNets: the original image, resized by `resizing.OpenCVResize`, then flipped.

    Attributes:
        shortest: Limits of the shorter side.
        longest: Limit of the longer side at the largest of `shortest`; at others it is smaller in proportion.
        flip: Whether each size is also flipped.
    """

    shortest: tuple[int, ...]
    longest: int
    flip: bool

    needs_original = True

    def __call__(self, inputs: Mapping[str, Any]) -> Views:
        """Return the views of a complete input."""
        pixels = inputs["image"].permute(1, 2, 0).numpy()
        size, views = (pixels.shape[0], pixels.shape[1]), []
        for shortest in self.shortest:
            longest = int(self.longest * shortest / max(self.shortest))
            resized = OpenCVResize(*size, *size_inside(size, shortest, longest)).apply_image(pixels)
            for flipped in (False, True) if self.flip else (False,):
                image = np.ascontiguousarray((resized[:, ::-1] if flipped else resized).transpose(2, 0, 1))
                views.append(({**inputs, "image": torch.from_numpy(image)}, flipped))
        return views


def _build_views_of_original(cfg: CfgNode) -> ViewsOfOriginal:
    node = cfg.TEST.AUG
    return ViewsOfOriginal(tuple(node.MIN_SIZES), node.MAX_SIZE, node.FLIP)


# By the resizing of test images (INPUT.RESIZE_WITH).
_VIEWS: Mapping[type[ResizeShortestEdge], Callable[[CfgNode], ViewsOfInput | ViewsOfOriginal]] = {
    ResizeShortestEdge: ViewsOfInput,
    ResizeInside: _build_views_of_original,
}


def check_augmentation(cfg: CfgNode) -> None:
    """Check that a model whose config has TEST.AUG.ENABLED can be augmented.

    Raises:
        ConfigError: The architecture has no test-time augmentation.
    """
    if cfg.TEST.AUG.ENABLED and not architecture_of(cfg).augmentation:
        possible = " and ".join(name for name, row in ARCHITECTURES.items() if row.augmentation)
        raise ConfigError(
            f"TEST.AUG.ENABLED is True, but {cfg.MODEL.META_ARCHITECTURE} has no test-time augmentation, as published; "
            f"{possible} have it"
        )


def augment_at_test_time(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, "SemanticSegmentorWithTTA"]:
    """Choose what is averaged over the views of `TEST.AUG`, by the architecture of a model.

    Returns:
        Config of the evaluation and model with augmentation. Of an unknown architecture, only class maps are known to
        be of a kind that can be averaged, and the config asks for nothing else.

    Raises:
        ConfigError: Results of the architecture can't be averaged.
    """
    check_augmentation(cfg)
    if architecture_of_model(model) is not None:
        return cfg, ModelWithTTA(cfg, model)
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.MASK_FORMER.TEST
    node.PANOPTIC_ON, node.INSTANCE_ON, node.SEMANTIC_ON = False, False, True
    return cfg, SemanticSegmentorWithTTA(cfg, model)


class SemanticSegmentorWithTTA(nn.Module):
    """Averages the class scores of a model over the image sizes `TEST.AUG.MIN_SIZES`, with and without a flip."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Wrap a model that returns `sem_seg` scores, with the augmentation of `TEST.AUG`."""
        super().__init__()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model = model
        self.image_format = cfg.INPUT.FORMAT
        self.value_range = configured_range(cfg)
        self.views = _VIEWS[build_resize_kind(cfg)](cfg)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict images.

        Args:
            batched_inputs: Inputs of the model for inference; a missing `image` is read from `file_name`.

        Returns:
            A dict per image with `sem_seg` [K, height, width].
        """
        return [self._average(self._complete(inputs)) for inputs in batched_inputs]

    def _complete(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        image = inputs.get("image")
        size = (inputs.get("height"), inputs.get("width"))
        resized = image is not None and None not in size and tuple(image.shape[1:]) != size
        if image is None or (resized and self.views.needs_original and "file_name" in inputs):
            pixels = read_image(inputs["file_name"], self.image_format, self.value_range)
            inputs["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        inputs.setdefault("height", inputs["image"].shape[1])
        inputs.setdefault("width", inputs["image"].shape[2])
        return inputs

    def _views(self, inputs: dict[str, Any]) -> Views:
        """The augmented inputs, each with a flag for the flip."""
        views = self.views(inputs)
        if not views:
            raise ConfigError("TEST.AUG.MIN_SIZES is empty; expected at least one side length")
        return views

    def _average(self, inputs: dict[str, Any]) -> dict[str, Any]:
        maps = ((self.model([view])[0]["sem_seg"], flipped) for view, flipped in self._views(inputs))
        return {"sem_seg": _mean(maps)}


class AugmentedModel(Protocol):
    """What test-time augmentation needs of a model."""

    inference_settings: InferenceSettings

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[Queries | PixelScores]:
        """Raw output of the network for each image."""
        ...


class ModelWithTTA(SemanticSegmentorWithTTA):
    """Test-time augmentation for all tasks of a model whose architecture has it in `tasks.ARCHITECTURES`.

    Class scores are averaged as above. The papers report panoptic and instance results without augmentation; here
    `merge_views` combines the raw outputs of all views, and results are made of that as usual.
    """

    model: AugmentedModel

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @torch.no_grad()
    def predict(self, batched_inputs: list[dict[str, Any]]) -> list["AveragedViews"]:
        """Raw outputs for all views of each image; the inputs are those of `forward`."""
        return [self._predict_views(self._complete(inputs)) for inputs in batched_inputs]

    def _predict_views(self, inputs: dict[str, Any]) -> "AveragedViews":
        return AveragedViews([(self.model.predict([view])[0], flipped) for view, flipped in self._views(inputs)])

    def _average(self, inputs: dict[str, Any]) -> dict[str, Any]:
        size = inputs["height"], inputs["width"]
        return inference.run(self._predict_views(inputs), size, self.model.inference_settings)


@dataclass(frozen=True)
class AveragedViews:
    """Raw outputs for the views of one image, from which averaged results are made.

    Attributes:
        views: Raw output of each view, and whether the view is flipped from left to right.
    """

    views: Sequence[tuple[Queries | PixelScores, bool]]

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs, on any device."""
        return sum(output.nbytes for output, _ in self.views)

    def results(self, size: Size, settings: InferenceSettings) -> dict[str, Any]:
        """Compute the results of `settings.tasks` at a size; see `inference.run`."""
        results: dict[str, Any] = {}
        if masked := tuple(task for task in settings.tasks if task != "semantic"):
            queries = [(output, flipped) for output, flipped in self.views if isinstance(output, Queries)]
            results = inference.run(merge_views(queries), size, replace(settings, tasks=masked))
        if "semantic" in settings.tasks:
            results["sem_seg"] = self._class_map(size, settings)
        return results

    def _class_map(self, size: Size, settings: InferenceSettings) -> Tensor:
        """Mean of the class scores [K, H, W], or the class with the highest mean [H, W]."""
        scores = replace(settings, tasks=("semantic",), semantic_scores=True)
        if settings.semantic_scores:
            return _mean((inference.run(output, size, scores)["sem_seg"], flipped) for output, flipped in self.views)
        # Scores of all classes at the size of a photograph may not fit in memory.
        strips = zip(*(output.class_strips(size, scores) for output, _ in self.views), strict=True)
        flips = [flipped for _, flipped in self.views]
        return torch.cat([first_largest(_mean(zip(strip, flips, strict=True))) for strip in strips])


def merge_views(views: Sequence[tuple[Queries, bool]]) -> Queries:
    """Merge the raw outputs of several views of one image.

    Starting with the queries of the first view, the queries of each further view are assigned one to one to the objects
    found so far, such that classes and masks agree best in total. A pair whose masks have a Dice coefficient of at
    least 0.5 is the same object; any other query whose best class is a real one is a new object. The mask of an object
    is the mean over the views that have it. Its class probabilities are the mean over all views, where a view without
    the object counts as "no object".

    Args:
        views: Raw output of each view, and whether the view is flipped from left to right.

    Returns:
        The objects as queries, with masks on a grid of stride 4.
    """
    if len(views) == 1 and not views[0][1]:
        return views[0][0]
    # Masks are compared on the grid of the largest view.
    height, width = max((queries.image_size for queries, _ in views), key=lambda size: size[0] * size[1])
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
    return Queries((classes / len(views)).clamp(min=1e-12).log(), masks.logit(eps=1e-6), grid, grid)


def _on_grid(queries: Queries, flipped: bool, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Probabilities of classes [Q, K + 1] and of masks [Q, h, w], with the flip undone."""
    masks = torch.cat([strip.sigmoid() for _, strip in queries.resized(grid).strips()], 1)
    return queries.logits.softmax(-1), masks.flip(-1) if flipped else masks


def _assign(classes: Tensor, masks: Tensor, new_classes: Tensor, new_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Assign new queries to objects, given class probabilities [N, K + 1] and mask probabilities [N, h, w].

    Returns:
        The object of each new query (0 if there are too few objects), and whether both are the same object.
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
    """Mean of maps [K, H, W], of which some are flipped."""
    upright = (class_map.flip(2) if flipped else class_map for class_map, flipped in maps)
    total, count = next(upright), 1
    for class_map in upright:
        total, count = total.add_(class_map), count + 1
    return total / count
