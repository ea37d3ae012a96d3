"""Boxes and masks of regions: Mask R-CNN (He et al., ICCV 2017), and Cascade R-CNN (Cai and Vasconcelos, CVPR 2018).

Mask R-CNN is a cascade of one stage. Layers, sampling, losses and suppression are Detectron2's.

Shapes:
    R: regions of all images of a batch; K: classes; the background is class K, the last one
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    ROIHeads,
    build_box_head,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import roi_align

from ..mask_resizing import Size
from .matching import AppendedTargetsMatcher, LowQualityMatcher
from .rpn import BoxTransform
from .selection import top_detections

# Side of the regions, in pixels of the input, from which on the second finest map is used.
_FINEST_SCALE = 56


def box_levels(boxes: Tensor, levels: int) -> Tensor:
    """Choose the map for each box by the rule of the feature pyramid paper, the finest one being 0.

    Args:
        boxes: Boxes (x0, y0, x1, y1) [R, 4].
        levels: Number of maps.

    Returns:
        Levels, int64 [R].
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / _FINEST_SCALE + 1e-6).log2().floor().clamp(0, levels - 1).long()


class RegionPooler(nn.Module):
    """Features of regions by RoIAlign, each from the map that fits its size."""

    def __init__(self, size: int, strides: Sequence[int], sampling_ratio: int) -> None:
        """Set the layout.

        Args:
            size: Side of the result.
            strides: Strides of the maps, from the finest to the coarsest.
            sampling_ratio: Number of samples along each side of a bin; 0: as many as a bin has pixels.
        """
        super().__init__()
        self.size = size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool the boxes [N, 4] of each image from maps [B, C, H, W]; returns [R, C, size, size]."""
        all_boxes = torch.cat(list(boxes)).to(maps[0].dtype)
        images = [of_image.new_full((len(of_image), 1), index) for index, of_image in enumerate(boxes)]
        regions = torch.cat([torch.cat(images).to(all_boxes), all_boxes], dim=1)
        levels = box_levels(all_boxes, len(maps))
        pooled = maps[0].new_zeros((len(regions), maps[0].shape[1], self.size, self.size))
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = (levels == level).nonzero()[:, 0]
            scale, ratio = 1 / stride, self.sampling_ratio
            found = roi_align(features, regions[chosen], self.size, scale, ratio, aligned=True)
            pooled = pooled.index_copy(0, chosen, found)
        return pooled


@ROI_HEADS_REGISTRY.register()
class MaskRCNNHeads(nn.Module):
    """Heads for classes, boxes and masks in one or several stages, each of which refines the boxes of the one before.

    Classes are predicted from the mean of the logits of all stages, boxes by the last stage, and masks from the mean of
    the probabilities of all mask heads.
    """

    # Lists of modules; their own type does not tell what they hold.
    box_head: Any
    box_predictor: Any
    mask_head: Any
    samplers: Any

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        box_pooler: nn.Module,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[FastRCNNOutputLayers],
        mask_pooler: nn.Module,
        mask_heads: Sequence[nn.Module],
        samplers: Sequence[ROIHeads],
        loss_weights: Sequence[float],
    ) -> None:
        """Set the parts; lists have an entry per stage.

        Args:
            in_features: Names of the maps that regions are pooled from, the finest first.
            box_pooler: Pooler for the box heads.
            box_heads: Modules from pooled features to a vector per region.
            box_predictors: Modules from these vectors to logits and deltas.
            mask_pooler: Pooler for the mask heads.
            mask_heads: Modules whose method `layers` maps pooled features to mask logits.
            samplers: Objects that match proposals with targets and sample from them for a training.
            loss_weights: Weights of the losses of the stages.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.mask_pooler = mask_pooler
        self.mask_head = nn.ModuleList(mask_heads)
        self.samplers = nn.ModuleList(samplers)
        self.loss_weights = tuple(loss_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Build one stage from `MODEL.ROI_HEADS`, `MODEL.ROI_BOX_HEAD` and `MODEL.ROI_MASK_HEAD`."""
        heads, stds = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        # A proposal belongs to the target whose best one it is, also if it overlaps more with another.
        matcher = LowQualityMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, heads.IOU_THRESHOLDS[-1])
        return _build_parts(cfg, input_shape, [stds], [matcher], [1.0])

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Compute losses in training mode, detections otherwise.

        Args:
            images: Images of the batch; not used.
            features: Maps by their names.
            proposals: `Instances` with `proposal_boxes`, one per image.
            targets: `Instances` with `gt_boxes`, `gt_classes` and `gt_masks` (training).

        Returns:
            Detections per image (see `predict`) and an empty dict; in training mode the proposals and the losses.
        """
        if self.training:
            return proposals, self.losses(features, proposals, targets or [])
        return self.predict(features, proposals), {}

    def predict(
        self, features: Mapping[str, Tensor], proposals: list[Instances], result_sizes: Sequence[Size] | None = None
    ) -> list[Instances]:
        """Detect objects in the images of a batch.

        Args:
            features: Maps by their names.
            proposals: `Instances` with `proposal_boxes`, one per image.
            result_sizes: Height and width of each image before it was resized; None: those of the inputs.

        Returns:
            `Instances` per image with `pred_boxes` in pixels of the input, `scores` in descending order,
            `pred_classes`, and `pred_masks`: probabilities [N, 1, h, w] inside the boxes.
        """
        maps, logits = self._maps(features), []
        for stage in range(len(self.box_head)):
            stage_logits, deltas = self.box_outputs(maps, proposals, stage)
            logits.append(stage_logits)
            if stage + 1 < len(self.box_head):
                proposals = self.refine(stage_logits, deltas, proposals, stage)
        mean = sum(logits[1:], logits[0]) / len(logits)
        last, outputs = self.box_predictor[-1], (mean.float(), deltas.float())
        limits = {"threshold": last.test_score_thresh, "iou": last.test_nms_thresh, "count": last.test_topk_per_image}
        sizes = [of_image.image_size for of_image in proposals]
        boxes, scores = last.predict_boxes(outputs, proposals), last.predict_probs(outputs, proposals)
        of_images = zip(boxes, scores, sizes, result_sizes or sizes, strict=True)
        return self.forward_with_given_boxes(features, [top_detections(*x, **limits) for x in of_images])

    def forward_with_given_boxes(self, features: Mapping[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` to instances with `pred_boxes` and `pred_classes`."""
        logits = self.mask_logits(self._maps(features), [of_image.pred_boxes.tensor for of_image in instances])
        probabilities = torch.stack([of_head.float().sigmoid() for of_head in logits]).mean(0)
        classes = torch.cat([of_image.pred_classes for of_image in instances])
        maps = classes % probabilities.shape[1]
        masks = probabilities[torch.arange(len(classes), device=classes.device), maps][:, None]
        counts = [len(of_image) for of_image in instances]
        return [
            Instances(of_image.image_size, **of_image.get_fields() | {"pred_masks": of_masks})
            for of_image, of_masks in zip(instances, masks.split(counts), strict=True)
        ]

    def losses(
        self, features: Mapping[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses of all stages; those of a cascade have names that end in the number of the stage."""
        maps, losses = self._maps(features), {}
        for stage, (sampler, weight) in enumerate(zip(self.samplers, self.loss_weights, strict=True)):
            samples = sampler.label_and_sample_proposals(proposals, targets)
            logits, deltas = self.box_outputs(maps, samples, stage)
            of_stage = self.box_predictor[stage].losses((logits, deltas), samples)
            inside, _ = select_foreground_proposals(samples, sampler.num_classes)
            pooled = self.mask_pooler(maps, [of_image.proposal_boxes.tensor for of_image in inside])
            of_stage["loss_mask"] = mask_rcnn_loss(self.mask_head[stage].layers(pooled), inside)
            ending = f"_stage{stage}" if len(self.samplers) > 1 else ""
            losses |= {name + ending: weight * loss for name, loss in of_stage.items()}
            if stage + 1 < len(self.samplers):
                proposals = self.refine(logits, deltas, samples, stage)
        return losses

    def box_outputs(self, maps: Sequence[Tensor], proposals: list[Instances], stage: int) -> tuple[Tensor, Tensor]:
        """Compute class logits [R, K + 1] and deltas [R, 4K] of a stage for the boxes of proposals."""
        pooled = self.box_pooler(maps, [of_image.proposal_boxes.tensor for of_image in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def mask_logits(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Compute mask logits [R, K, h, w] of each mask head for boxes [N, 4] of each image."""
        pooled = self.mask_pooler(maps, boxes)
        return [head.layers(pooled) for head in self.mask_head]

    @torch.no_grad()
    def refine(self, logits: Tensor, deltas: Tensor, proposals: list[Instances], stage: int) -> list[Instances]:
        """Move the boxes of a stage by the deltas of one class, and clip them to the images.

        The class is the most probable one without the background, also where the background wins. In a training it is
        the class of the target for regions that have one, and regions that are a target's own box are left out, since
        the next stage adds them again.

        Returns:
            Proposals for the next stage.
        """
        classes = logits[:, :-1].argmax(1)
        if proposals[0].has("gt_classes"):
            labels = torch.cat([of_image.gt_classes for of_image in proposals])
            classes = torch.where((labels >= 0) & (labels < logits.shape[1] - 1), labels, classes)
        boxes = torch.cat([of_image.proposal_boxes.tensor for of_image in proposals])
        of_classes = deltas.unflatten(1, (-1, 4))
        chosen = of_classes[torch.arange(len(classes), device=classes.device), classes % of_classes.shape[1]]
        moved = self.box_predictor[stage].box2box_transform.apply_deltas(chosen, boxes)
        refined = []
        for of_image, own in zip(proposals, moved.split([len(p) for p in proposals]), strict=True):
            if of_image.has("gt_boxes"):
                own = own[(of_image.proposal_boxes.tensor != of_image.gt_boxes.tensor).any(1)]
            clipped = Boxes(own)
            clipped.clip(of_image.image_size)
            if of_image.has("gt_classes"):
                clipped = clipped[clipped.nonempty()]
            # Detectron2's sampler expects this field of all proposals.
            logits_of_image = own.new_zeros(len(clipped))
            refined.append(Instances(of_image.image_size, proposal_boxes=clipped, objectness_logits=logits_of_image))
        return refined

    def _maps(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        # Regions are pooled in float32, also in autocast.
        return [features[name].float() for name in self.in_features]


@ROI_HEADS_REGISTRY.register()
class CascadeMaskRCNNHeads(MaskRCNNHeads):
    """The heads of Cascade Mask R-CNN, with a stage per entry of `MODEL.ROI_BOX_CASCADE_HEAD`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Build a stage for each entry of `MODEL.ROI_BOX_CASCADE_HEAD`."""
        node = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        matchers = [Matcher([threshold], cfg.MODEL.ROI_HEADS.IOU_LABELS) for threshold in node.IOUS]
        return _build_parts(cfg, input_shape, node.BBOX_REG_WEIGHTS, matchers, node.LOSS_WEIGHTS)


def _build_parts(
    cfg: CfgNode,
    input_shape: Mapping[str, ShapeSpec],
    weights: Sequence[Sequence[float]],
    matchers: Sequence[Matcher],
    loss_weights: Sequence[float],
) -> dict[str, Any]:
    """Arguments of `MaskRCNNHeads`: weights of the deltas, matchers of proposals, and loss weights per stage."""
    heads, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    names = heads.IN_FEATURES
    channels, strides = input_shape[names[0]].channels, [input_shape[name].stride or 1 for name in names]
    box_shape = ShapeSpec(channels=channels, height=box.POOLER_RESOLUTION, width=box.POOLER_RESOLUTION)
    mask_shape = ShapeSpec(channels=channels, height=mask.POOLER_RESOLUTION, width=mask.POOLER_RESOLUTION)
    box_heads = [build_box_head(cfg, box_shape) for _ in weights]
    output = box_heads[0].output_shape
    box_settings, sampler_settings = FastRCNNOutputLayers.from_config(cfg, output), ROIHeads.from_config(cfg)
    return {
        "in_features": names,
        "box_pooler": RegionPooler(box.POOLER_RESOLUTION, strides, box.POOLER_SAMPLING_RATIO),
        "box_heads": box_heads,
        "box_predictors": [
            FastRCNNOutputLayers(**box_settings | {"box2box_transform": BoxTransform(of_stage)}) for of_stage in weights
        ],
        "mask_pooler": RegionPooler(mask.POOLER_RESOLUTION, strides, mask.POOLER_SAMPLING_RATIO),
        "mask_heads": [build_mask_head(cfg, mask_shape) for _ in weights],
        "samplers": [
            ROIHeads(
                **sampler_settings | {"proposal_matcher": AppendedTargetsMatcher(m) if heads.PROPOSAL_APPEND_GT else m}
            )
            for m in matchers
        ],
        "loss_weights": loss_weights,
    }
