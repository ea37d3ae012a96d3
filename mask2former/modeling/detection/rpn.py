"""Region proposals as in the published detectors: Detectron2's, with another decoding of boxes and another matching.

Shapes:
    N: boxes; M: targets; K: classes
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor


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


class LowQualityMatcher(Matcher):
    """Detectron2's matcher, in which a target also takes the boxes with which it overlaps most, from an IoU on.

    Such boxes become positive and belong to this target, even if they overlap more with another one. Detectron2's own
    option has no lowest IoU and leaves them with the other target.
    """

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], lowest: float) -> None:
        """Set the limits.

        Args:
            thresholds: IoUs that separate the labels, ascending.
            labels: Labels 0 (background), -1 (ignored) and 1 (positive) of the ranges between the thresholds.
            lowest: Lowest IoU of a target's best boxes.
        """
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.lowest = lowest

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match the boxes of IoUs [M, N]; returns the target of each box, int64 [N], and its label, int8 [N]."""
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            taken = (match_quality_matrix == best) & (best >= self.lowest)
            targets, boxes = taken.nonzero(as_tuple=True)
            matches.scatter_reduce_(0, boxes, targets, "amax", include_self=False)
            labels[boxes] = 1
        return matches, labels


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNProposals(RPN):
    """Detectron2's region proposal network with `BoxTransform` and `LowQualityMatcher`.

    Losses are computed whenever targets are given, also in evaluation mode.
    """

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

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Read `MODEL.RPN`; a target's best anchors are positive from the lower of IOU_THRESHOLDS on."""
        node = cfg.MODEL.RPN
        return super().from_config(cfg, input_shape) | {
            "box2box_transform": BoxTransform(node.BBOX_REG_WEIGHTS),
            "anchor_matcher": LowQualityMatcher(node.IOU_THRESHOLDS, node.IOU_LABELS, node.IOU_THRESHOLDS[0]),
        }
