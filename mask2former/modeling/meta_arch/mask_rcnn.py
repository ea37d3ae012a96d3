"""Mask R-CNN and Cascade Mask R-CNN over any backbone, as in the published detectors of NAT and DiNAT."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.modeling.backbone import FPN
from detectron2.structures import Instances
from torch import Tensor

from ...config import ConfigError, require_maps
from ..detection import MaskRCNNHeads, build_fpn
from ..inference import InferenceSettings
from ..mask_resizing import Size
from .base import LossesOrResults


@META_ARCH_REGISTRY.register()
class MaskRCNN(LossesOrResults, GeneralizedRCNN):
    """Detectron2's `GeneralizedRCNN` with a feature pyramid over any backbone, and the published final steps.

    Empty boxes at the border of an image stay among the detections, and boxes are not clipped a second time.

    Targets of training are `instances`: `Instances` with `gt_boxes`, `gt_classes` and `gt_masks`. Results are those of
    `Detections.results`, whatever the settings.
    """

    @configurable
    def __init__(self, *, bfloat16_inference: bool = False, compile_network: bool = False, **parts: Any) -> None:
        """Set the parts.

        Args:
            bfloat16_inference: Predict in bfloat16 autocast; boxes are decoded in float32.
            compile_network: Run the backbone through `torch.compile`.
            parts: Arguments of `GeneralizedRCNN`.
        """
        super().__init__(**parts)
        self.bfloat16_inference = bfloat16_inference
        if compile_network:
            self.backbone.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts; `MODEL.FPN` is built over the backbone, unless that has a pyramid already.

        Raises:
            ConfigError: A part can't be used.
        """
        heads = cfg.MODEL.ROI_HEADS.NAME
        if not issubclass(ROI_HEADS_REGISTRY.get(heads), MaskRCNNHeads):
            raise ConfigError(f"MODEL.ROI_HEADS.NAME is {heads}, expected MaskRCNNHeads or a kind of it")
        if not cfg.MODEL.MASK_ON:
            raise ConfigError("MODEL.MASK_ON is False, but MaskRCNN always predicts masks; remove the key")
        backbone = _build_pyramid(cfg)
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
        }

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list["Detections"]:
        """Detections in the pixels of each input; `inference.run` brings them to the size of an image.

        Boxes are suppressed in pixels of the image, whose `height` and `width` are optional entries of the inputs.
        """
        if len({inputs["image"].shape for inputs in batched_inputs}) > 1:
            # Padding would change the results.
            return [found for inputs in batched_inputs for found in self.predict([inputs])]
        images = self.preprocess_image(batched_inputs)
        sizes = [
            (inputs.get("height", height), inputs.get("width", width))
            for inputs, (height, width) in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16_inference):
            features = self.backbone(images.tensor)
            proposals, _ = self.proposal_generator(images, features)
            found = self.roi_heads.predict(features, proposals, sizes)
        return [Detections(of_image) for of_image in found]

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses, which are means over the images; the arguments are those of `LossesOrResults.losses`."""
        images = self.preprocess_image(batched_inputs)
        targets = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        losses = losses | self.roi_heads.losses(features, proposals, targets)
        if target_counts is None:
            return losses
        share = len(batched_inputs) / len(target_counts)
        return {name: share * loss for name, loss in losses.items()}


def _build_pyramid(cfg: CfgNode) -> Backbone:
    """Build a backbone with a pyramid, and check that it fits the keys that Detectron2 takes as they are.

    Raises:
        ConfigError: A map is missing, or the anchors do not fit the maps.
    """
    backbone, model = build_backbone(cfg), cfg.MODEL
    if not isinstance(backbone, FPN):
        backbone = build_fpn(cfg, backbone)
    for key, names in (("RPN", model.RPN.IN_FEATURES), ("ROI_HEADS", model.ROI_HEADS.IN_FEATURES)):
        require_maps(f"MODEL.{key}.IN_FEATURES", names, backbone.output_shape())
    count = len(model.RPN.IN_FEATURES)
    for key in ("SIZES", "ASPECT_RATIOS"):
        values = model.ANCHOR_GENERATOR[key]
        if len(values) not in (1, count):
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{key} is {values}, expected a list for all {count} maps or one each"
            )
    return backbone


@dataclass(frozen=True)
class Detections:
    """Detections in one image.

    Attributes:
        instances: `Instances` in pixels of the input, with `pred_boxes`, `scores`, `pred_classes`, and `pred_masks`
            [N, 1, h, w] inside the boxes.
    """

    instances: Instances

    @property
    def size(self) -> Size:
        """Height and width of the input without padding."""
        return self.instances.image_size

    @property
    def nbytes(self) -> int:
        """Bytes of the masks, on any device."""
        return self.instances.pred_masks.nbytes

    def results(self, size: Size, settings: InferenceSettings) -> dict[str, Any]:
        """Compute `instances` at the size of the image that the input was resized from.

        Args:
            size: Height and width of the image.
            settings: Settings, which have no effect: the model has chosen its detections.

        Returns:
            A dict with `instances`: `pred_boxes` (x0, y0, x1, y1), float32 in pixels of the image, `scores` in
            descending order, `pred_classes`, and `pred_masks` bool [N, H, W].
        """
        found = self.instances
        height, width = (whole / part for whole, part in zip(size, self.size, strict=True))
        boxes = found.pred_boxes.clone()
        boxes.scale(width, height)
        probabilities, places = _with_area(found.pred_masks, boxes.tensor)
        masks = paste_masks_in_image(probabilities[:, 0], places, size).bool()
        fields = {"scores": found.scores, "pred_classes": found.pred_classes, "pred_masks": masks}
        return {"instances": Instances(size, pred_boxes=boxes, **fields)}


def _with_area(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Give boxes [N, 4] without a width or a height the pixels around their line, and the middle of their mask there.

    The published code shows such masks [N, 1, h, w] in these pixels.
    """
    for first, last, axis in ((0, 2, 3), (1, 3, 2)):
        flat = boxes[:, first] == boxes[:, last]
        if flat.any():
            middle = [side if dim != axis else 1 for dim, side in enumerate(masks.shape)][2:]
            lines = F.interpolate(masks[flat], middle, mode="bilinear").expand_as(masks[flat])
            masks = masks.index_put((flat,), lines)
            boxes = boxes.clone()
            boxes[flat, first] = boxes[flat, first].floor() - 1
            boxes[flat, last] = boxes[flat, last].ceil() + 1
    return masks, boxes
