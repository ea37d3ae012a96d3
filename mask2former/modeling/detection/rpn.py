"""Region proposals as in the published detectors: Detectron2's, with other decoding, matching and suppression.

Shapes:
    N: boxes; K: classes
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor

from ..mask_resizing import Size
from .matching import LowQualityMatcher
from .selection import top_proposals


class BoxTransform(Box2BoxTransform):
    """Detectron2's boxes from deltas, with limits on both sides: no side shrinks or grows by more than 1000 / 16.

    Attributes:
        weights: Reciprocals of the standard deviations of (dx, dy, dw, dh).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Set the weights."""
        x, y, width, height = weights
        super().__init__((x, y, width, height))

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move boxes (x0, y0, x1, y1) [N, 4] by deltas [N, 4K]; returns [N, 4K], in float32."""
        dx, dy, dw, dh = deltas.float().unflatten(-1, (-1, 4)).unbind(-1)
        dw = dw.clamp(min=-self.scale_clamp * self.weights[2])
        dh = dh.clamp(min=-self.scale_clamp * self.weights[3])
        return super().apply_deltas(torch.stack([dx, dy, dw, dh], -1).flatten(1), boxes)


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNProposals(RPN):
    """Detectron2's region proposal network with `BoxTransform`, `LowQualityMatcher` and `top_proposals`.

    Losses are computed whenever targets are given, also in evaluation mode.
    """

    @configurable
    def __init__(self, *, padding: int, **parts: Any) -> None:
        """Set the parts.

        Args:
            padding: Multiple that the sides of each image are padded to before it joins a batch.
            parts: Arguments of `RPN`.
        """
        super().__init__(**parts)
        self.padding = padding

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Read `MODEL.RPN`; a target's best anchors are positive from the lower of IOU_THRESHOLDS on."""
        node = cfg.MODEL.RPN
        return super().from_config(cfg, input_shape) | {
            "padding": max(input_shape[name].stride or 1 for name in cfg.MODEL.ROI_HEADS.IN_FEATURES),
            "box2box_transform": BoxTransform(node.BBOX_REG_WEIGHTS),
            "anchor_matcher": LowQualityMatcher(node.IOU_THRESHOLDS, node.IOU_LABELS, node.IOU_THRESHOLDS[0]),
        }

    def forward(
        self, images: ImageList, features: Mapping[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose regions, as many as in a training if there are targets; see Detectron2's `RPN`."""
        mode = self.training
        # Detectron2's method goes by the mode; there is no layer that does.
        self.train(gt_instances is not None)
        try:
            return super().forward(images, dict(features), gt_instances)
        finally:
            self.train(mode)

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match the anchors of a batch with the targets of each image, and sample from them.

        Anchors that are not trained are left out before the matching, so that a target takes the best of the others.
        These are the anchors in the padding that the size of another image makes necessary and, with
        `MODEL.RPN.BOUNDARY_THRESH` of 0 or more, those that reach further over the border of the image.

        Args:
            anchors: Anchors of each map.
            gt_instances: `Instances` per image, with `gt_boxes`.

        Returns:
            For each image, labels 1 (positive), 0 (background) and -1 (not used), int8 [N], and the target's box of
            each positive anchor, [N, 4].
        """
        boxes = Boxes.cat(anchors)
        labels, targets = [], []
        for instances in gt_instances:
            used = self._trained(boxes, instances.image_size).nonzero()[:, 0]
            matches, labels_of_used = self.anchor_matcher(pairwise_iou(instances.gt_boxes, boxes[used]))
            of_image = labels_of_used.new_full((len(boxes),), -1)
            of_image[used] = self._subsample_labels(labels_of_used)
            labels.append(of_image)
            matched = torch.zeros_like(boxes.tensor)
            if len(instances):
                matched[used] = instances.gt_boxes.tensor[matches].to(matched)
            targets.append(matched)
        return labels, targets

    def _trained(self, anchors: Boxes, size: Size) -> Tensor:
        height, width = (math.ceil(side / self.padding) * self.padding for side in size)
        x, y = anchors.get_centers().unbind(1)
        trained = (x < width) & (y < height)
        if self.anchor_boundary_thresh >= 0:
            trained &= anchors.inside_box(size, self.anchor_boundary_thresh)
        return trained

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[Size],
    ) -> list[Instances]:
        """Choose the proposals of each image from anchors, logits [B, N] and deltas [B, N, 4] of each level.

        Raises:
            FloatingPointError: A box or a logit of a training is not finite.
        """
        boxes = self._decode_proposals(anchors, pred_anchor_deltas)
        if self.training and not all(x.isfinite().all() for x in (*boxes, *pred_objectness_logits)):
            raise FloatingPointError("boxes or scores of region proposals are not finite")
        limits = {"per_level": self.pre_nms_topk[self.training], "count": self.post_nms_topk[self.training]}
        limits |= {"iou": self.nms_thresh, "min_size": self.min_box_size}
        return [
            top_proposals([x[image] for x in boxes], [x[image] for x in pred_objectness_logits], size, **limits)
            for image, size in enumerate(image_sizes)
        ]
