"""Mask R-CNN and Cascade Mask R-CNN over any backbone, as in the published detectors of NAT and DiNAT."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask2former.modeling.detection import FPN, build_fpn


@META_ARCH_REGISTRY.register()
class MaskRCNN(GeneralizedRCNN):
    """Detectron2's `GeneralizedRCNN` with a feature pyramid over any backbone, and the published final steps.

    Empty boxes at the border of an image stay among the detections, and boxes are not clipped a second time. Boxes are
    suppressed in pixels of the input. An overlap does not change when the axes are scaled, so that the result is that
    of the published code, which suppresses them in pixels of the image.
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
        """Build the parts; `MODEL.FPN` is built over the backbone, unless that has a pyramid already."""
        backbone = build_backbone(cfg)
        if not isinstance(backbone, FPN):
            backbone = build_fpn(cfg, backbone)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "bfloat16_inference": cfg.TEST.AMP,
            "compile_network": cfg.MODEL.COMPILE,
        }

    def forward(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Compute losses in training mode, detections otherwise.

        Args:
            batched_inputs: Dicts, one per image:

                * `image`: [3, H, W], channels in the order of `INPUT.FORMAT`, 0..255.
                * `instances` (training): `Instances` with `gt_boxes`, `gt_classes` and `gt_masks`.
                * `height`, `width` (inference, optional): Size of the results; default: that of `image`.
            target_counts: `count_targets` of the whole batch if `batched_inputs` is a part of it (training).

        Returns:
            The losses in training mode; otherwise a dict per image with `instances`, see `at_size`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        losses = super().forward(batched_inputs)
        if target_counts is not None:
            share = len(batched_inputs) / len(target_counts)
            losses = {name: share * loss for name, loss in losses.items()}
        return losses

    def count_targets(self, batched_inputs: list[dict[str, Any]]) -> list[int]:
        """Weight of each training input in the losses of a batch: losses are means over images."""
        return [1] * len(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Detect objects; see Detectron2's `GeneralizedRCNN.inference` for the arguments and `forward` for results."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16_inference):
            found = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return found
        return [
            {"instances": at_size(of_image, inputs.get("height"), inputs.get("width"))}
            for of_image, inputs in zip(found, batched_inputs, strict=True)
        ]


def at_size(found: Instances, height: int | None, width: int | None) -> Instances:
    """Bring the detections in an input to the size of the image that it was resized from.

    Args:
        found: Detections in pixels of the input, with `pred_masks` [N, 1, h, w] inside the boxes.
        height: Height of the image; None: that of the input.
        width: Width of the image; None: that of the input.

    Returns:
        `Instances` with `pred_boxes` (x0, y0, x1, y1), float32 in pixels of the image, `scores` in descending order,
        `pred_classes`, and `pred_masks` bool [N, height, width].
    """
    size = (height or found.image_size[0], width or found.image_size[1])
    factors = [whole / part for whole, part in zip(size, found.image_size, strict=True)]
    boxes = found.pred_boxes.tensor * found.pred_boxes.tensor.new_tensor([*factors[::-1], *factors[::-1]])
    masks = paste_masks_in_image(found.pred_masks[:, 0], boxes, size).bool()
    result = Instances(size, pred_boxes=Boxes(boxes), scores=found.scores, pred_classes=found.pred_classes)
    result.pred_masks = masks
    return result
