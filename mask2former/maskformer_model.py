"""The Mask2Former meta-architecture: normalise, backbone, head, then losses or results.

Shapes:
    B: images; Q: queries; K: classes; M: targets; H, W: height and width of an image
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from .modeling.criterion import SetCriterion
from .modeling.mask_resizing import Resize, ResizedMasks, Size, class_map
from .modeling.matcher import HungarianMatcher
from .modeling.postprocessing import (
    InstanceResult,
    PanopticResult,
    Result,
    SemanticClasses,
    SemanticScores,
    infer,
    semantic_classes,
    semantic_inference,
)


class Prediction(NamedTuple):
    """What the network says of an image.

    Attributes:
        logits: of classes [Q, K + 1].
        masks: logits [Q, h, w] of any size, over the whole padded input.
        padded_size: height and width of the padded input.
        image_size: of the image in its upper left corner.
    """

    logits: Tensor
    masks: Tensor
    padded_size: Size
    image_size: Size

    def resized_masks(self, result_size: Size | None = None) -> ResizedMasks:
        """Masks of the image at this height and width; None: those of the padded input."""
        steps = [Resize(crop=(self.masks.shape[-2], self.masks.shape[-1]), size=self.padded_size)]
        if result_size is not None:
            steps.append(Resize(crop=self.image_size, size=result_size))
        return ResizedMasks(self.masks, steps)


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for semantic, instance and panoptic segmentation (Cheng et al., CVPR 2022).

    Attributes:
        semantic_scores: whether `sem_seg` holds scores. Otherwise it holds class ids, which take less memory: scores of
            133 classes at 3000 x 4000 pixels are 6.4 GB.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        thing_ids: frozenset[int],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        resize_masks_first: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        detections_per_image: int,
        ignore_void: bool = False,
        bfloat16_inference: bool = False,
        compile_network: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: a Detectron2 backbone.
            sem_seg_head: backbone maps to the outputs of a transformer decoder.
            criterion: outputs and targets to losses.
            pixel_mean: of each channel, in the units of the input.
            pixel_std: likewise.
            size_divisibility: pad images to a multiple of this (or of what the backbone wants, if negative).
            thing_ids: contiguous ids of the thing classes.
            semantic_on: return `sem_seg`.
            panoptic_on: return `panoptic_seg`.
            instance_on: return `instances`.
            resize_masks_first: resize masks, not class maps, to the requested size.
            object_mask_threshold: see `panoptic_inference`.
            overlap_threshold: see `panoptic_inference`.
            detections_per_image: see `instance_inference`.
            ignore_void: mask losses skip the pixels that `void` of a training input marks, instead of taking them for
                background.
            bfloat16_inference: run the network in bfloat16 autocast when it predicts; results are made in float32.
            compile_network: run backbone and head through `torch.compile`, each as one graph.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.thing_ids = thing_ids
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        # Only a class map can be resized after inference: instances and segments need masks of the requested size.
        self.resize_masks_first = resize_masks_first or panoptic_on or instance_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.detections_per_image = detections_per_image
        self.ignore_void = ignore_void
        self.bfloat16_inference = bfloat16_inference
        self.semantic_scores = True
        if compile_network:
            self.backbone.compile(fullgraph=True)
            self.sem_seg_head.compile(fullgraph=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts; thing classes are those of the first training set's metadata."""
        node = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": _build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "thing_ids": _thing_ids(cfg.DATASETS.TRAIN),
            "semantic_on": node.TEST.SEMANTIC_ON,
            "panoptic_on": node.TEST.PANOPTIC_ON,
            "instance_on": node.TEST.INSTANCE_ON,
            "resize_masks_first": node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "ignore_void": node.IGNORE_VOID,
            "bfloat16_inference": cfg.TEST.AMP,
            "compile_network": cfg.MODEL.COMPILE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Compute losses in training mode, results otherwise.

        Args:
            batched_inputs: one dict an image.

                * `image`: [3, H, W], channels in the order of `INPUT.FORMAT`, 0..255.
                * `instances` (training): `Instances` with `gt_classes` int64 [M] and `gt_masks` bool [M, H, W]; stuff
                  segments are targets like any other.
                * `void` (training, with `ignore_void`): bool [H, W], the pixels about which nothing is known.
                * `height`, `width` (inference, optional): size of the results; default that of `image`.
            target_counts: see `losses`.

        Returns:
            In training the weighted losses. Otherwise one dict an image with those of these that are switched on:

            * `sem_seg`: [K, height, width], the larger the likelier; int64 [height, width] without `semantic_scores`.
            * `panoptic_seg`: int32 [height, width] and a list of segments, see `panoptic_inference`.
            * `instances`: see `instance_inference`.
        """
        if self.training:
            return self.losses(batched_inputs, target_counts)
        images = self._normalize(batched_inputs)
        outputs = self._run_network(images, aux_outputs=False)
        return [
            self.postprocess(prediction, (inputs.get("height", image_size[0]), inputs.get("width", image_size[1])))
            for prediction, image_size, inputs in zip(
                _split(outputs, images), images.image_sizes, batched_inputs, strict=True
            )
        ]

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of training inputs, see `forward`; without dropout in evaluation mode.

        Args:
            batched_inputs: one dict an image.
            target_counts: `count_targets` of the whole batch, where `batched_inputs` is a part of one: the losses of
                all parts then add up to those of the whole.
        """
        images = self._normalize(batched_inputs)
        outputs = self._run_network(images)
        targets = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        classes = [target.gt_classes for target in targets]
        masks = [_pad(target.gt_masks, images, value=False) for target in targets]
        return self.criterion(outputs, classes, masks, self._void(batched_inputs, images), target_counts)

    def count_targets(self, batched_inputs: list[dict[str, Any]]) -> list[int]:
        """How many targets of each training input the losses look at."""
        return [
            # Nothing is known about an image that is all void.
            0 if self.ignore_void and bool(inputs["void"].all()) else len(inputs["instances"])
            for inputs in batched_inputs
        ]

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[Prediction]:
        """What the network says of each image, before any result is made of it; see `forward` and `postprocess`."""
        images = self._normalize(batched_inputs)
        return _split(self._run_network(images, aux_outputs=False), images)

    def _run_network(self, images: ImageList, aux_outputs: bool = True) -> dict[str, Any]:
        if self.training or not self.bfloat16_inference:
            return self.sem_seg_head(self.backbone(images.tensor), aux_outputs)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.sem_seg_head(self.backbone(images.tensor), aux_outputs)

    def _normalize(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [(inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std for inputs in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _void(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[Tensor] | None:
        if not self.ignore_void:
            return None
        try:
            return [_pad(inputs["void"].to(self.device), images, value=True) for inputs in batched_inputs]
        except KeyError as error:
            raise ValueError(
                "MODEL.MASK_FORMER.IGNORE_VOID is on, but a training input has no 'void'; the mapper has to give it"
            ) from error

    def postprocess(self, prediction: Prediction, result_size: Size) -> dict[str, Any]:
        """The results that are switched on, with this height and width; see `forward`."""
        logits, masks = prediction.logits, prediction.resized_masks(result_size)
        parts: dict[str, Result] = {}
        if self.semantic_on and self.resize_masks_first:
            kind = SemanticScores if self.semantic_scores else SemanticClasses
            parts["sem_seg"] = kind(logits, masks.size)
        if self.panoptic_on:
            parts["panoptic_seg"] = PanopticResult(
                logits, masks.size, self.thing_ids, self.object_mask_threshold, self.overlap_threshold
            )
        if self.instance_on:
            # A panoptic model also predicts stuff, which has no instances.
            classes = self.thing_ids if self.panoptic_on else None
            parts["instances"] = InstanceResult(logits, masks.size, self.detections_per_image, classes)
        results = dict(zip(parts, infer(masks, *parts.values()), strict=True))
        if self.semantic_on and not self.resize_masks_first:
            results["sem_seg"] = self.semantic(prediction, result_size, scores=self.semantic_scores)
        return results

    def semantic(self, prediction: Prediction, result_size: Size, *, scores: bool) -> Tensor:
        """Semantic result with this height and width: scores [K, height, width], or class ids [height, width]."""
        if self.resize_masks_first:
            infer = semantic_inference if scores else semantic_classes
            return infer(prediction.logits, prediction.resized_masks(result_size))
        scores_map = semantic_inference(prediction.logits, prediction.resized_masks())
        if scores:
            return sem_seg_postprocess(scores_map, prediction.image_size, *result_size)
        return class_map(ResizedMasks(scores_map, [Resize(prediction.image_size, result_size)]))


def _split(outputs: dict[str, Any], images: ImageList) -> list[Prediction]:
    """Outputs of the head, image by image, in float32."""
    padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
    logits, masks = outputs["pred_logits"].float(), outputs["pred_masks"].float()
    return [
        Prediction(*predicted, padded_size, image_size)
        for *predicted, image_size in zip(logits, masks, images.image_sizes, strict=True)
    ]


def _pad(masks: Tensor, images: ImageList, value: bool) -> Tensor:
    """Masks [..., H, W] on the padded input."""
    height, width = images.tensor.shape[-2:]
    return F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]), value=value)


def _thing_ids(dataset_names: Sequence[str]) -> frozenset[int]:
    if not dataset_names:
        raise ValueError("DATASETS.TRAIN is empty; its first data set says which classes are things")
    metadata = MetadataCatalog.get(dataset_names[0])
    return frozenset(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())


def _build_criterion(cfg: CfgNode) -> SetCriterion:
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT, node.TRAIN_NUM_POINTS)
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher,
        class_weight=node.CLASS_WEIGHT,
        mask_weight=node.MASK_WEIGHT,
        dice_weight=node.DICE_WEIGHT,
        no_object_weight=node.NO_OBJECT_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        deep_supervision=node.DEEP_SUPERVISION,
    )
