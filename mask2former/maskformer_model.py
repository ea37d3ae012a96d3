"""The Mask2Former meta-architecture: normalisation, backbone, head, then losses or results.

Shapes:
    B: images; Q: queries; K: classes; M: targets; H, W: height and width of an image
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from .config import ConfigError
from .modeling.criterion import SetCriterion
from .modeling.inference import InferenceSettings, Queries
from .modeling.matcher import HungarianMatcher
from .modeling.meta_arch.base import MetaArchitecture
from .tasks import tasks_of, thing_ids


@META_ARCH_REGISTRY.register()
class MaskFormer(MetaArchitecture):
    """Mask classification for semantic, instance and panoptic segmentation (Cheng et al., CVPR 2022).

    Prediction leaves the model as it is: what a call needs beyond `inference_settings` is given to that call.

    Targets of training are `instances`: `Instances` with `gt_classes` int64 [M] and `gt_masks` bool [M, H, W], stuff
    segments like any other; and, with `ignore_void`, `void`: bool [H, W], the pixels without a label. Results are those
    of `inference.run`.
    """

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
        inference_settings: InferenceSettings,
        ignore_void: bool = False,
        bfloat16_inference: bool = False,
        compile_network: bool = False,
    ) -> None:
        """Set the parts.

        Args:
            backbone: Detectron2 backbone.
            sem_seg_head: Module that maps the features of the backbone to the outputs of a transformer decoder.
            criterion: Module that maps outputs and targets to losses.
            pixel_mean: Mean of each channel, in the units of the input.
            pixel_std: Standard deviation of each channel, in the units of the input.
            size_divisibility: Multiple that image sides are padded to; negative: the backbone's own.
            inference_settings: Tasks and thresholds of prediction.
            ignore_void: Mask losses skip the pixels marked by `void` of a training input instead of taking them for
                background.
            bfloat16_inference: Predict in bfloat16 autocast; results are made in float32.
            compile_network: Run backbone and head through `torch.compile`, each as one graph.
        """
        super().__init__(
            backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std, bfloat16_inference=bfloat16_inference
        )
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.inference_settings = inference_settings
        self.ignore_void = ignore_void
        if compile_network:
            self.backbone.compile(fullgraph=True)
            self.sem_seg_head.compile(fullgraph=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts; the metadata of the first training set define the thing classes."""
        node = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": _build_criterion(cfg),
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "inference_settings": _build_inference_settings(cfg),
            "ignore_void": node.IGNORE_VOID,
        }

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[Queries]:
        """Raw output of the network for each image, in float32; `inference.run` makes results of it."""
        images = self.preprocess(batched_inputs)
        outputs = self._run_network(images, aux_outputs=False)
        padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        logits, masks = outputs["pred_logits"].float(), outputs["pred_masks"].float()
        return [
            Queries(*of_image, padded_size, image_size)
            for *of_image, image_size in zip(logits, masks, images.image_sizes, strict=True)
        ]

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of training inputs; in evaluation mode, without dropout.

        The arguments are those of `LossesOrResults.losses`.
        """
        images = self.preprocess(batched_inputs)
        outputs = self._run_network(images)
        targets = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        classes = [target.gt_classes for target in targets]
        masks = [_pad(target.gt_masks, images, value=False) for target in targets]
        return self.criterion(outputs, classes, masks, self._void(batched_inputs, images), target_counts)

    def count_targets(self, batched_inputs: list[dict[str, Any]]) -> list[int]:
        """Number of targets of each training input that the losses use."""
        return [
            # An image that is all void has no labels.
            0 if self.ignore_void and bool(inputs["void"].all()) else len(inputs["instances"])
            for inputs in batched_inputs
        ]

    def _run_network(self, images: ImageList, aux_outputs: bool = True) -> dict[str, Any]:
        if self.training or not self.bfloat16_inference:
            return self.sem_seg_head(self.backbone(images.tensor), aux_outputs)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.sem_seg_head(self.backbone(images.tensor), aux_outputs)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images of a batch and pad them to a common size."""
        images = [self.normalise(inputs["image"].to(self.device)) for inputs in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _void(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[Tensor] | None:
        if not self.ignore_void:
            return None
        try:
            return [_pad(inputs["void"].to(self.device), images, value=True) for inputs in batched_inputs]
        except KeyError as error:
            raise ConfigError(
                "MODEL.MASK_FORMER.IGNORE_VOID is on, but a training input has no 'void'; the mapper has to provide it"
            ) from error


def _pad(masks: Tensor, images: ImageList, value: bool) -> Tensor:
    """Masks [..., H, W] padded to the size of the padded input."""
    height, width = images.tensor.shape[-2:]
    return F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]), value=value)


def _build_inference_settings(cfg: CfgNode) -> InferenceSettings:
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; its first data set defines which classes are things")
    node = cfg.MODEL.MASK_FORMER.TEST
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    return InferenceSettings(
        tasks=tasks_of(cfg),
        object_mask_threshold=node.OBJECT_MASK_THRESHOLD,
        overlap_threshold=node.OVERLAP_THRESHOLD,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        # Stuff has no instances, even if only instances are predicted. The published code keeps those of stuff unless
        # PANOPTIC_ON; its instance models have no stuff.
        thing_ids=thing_ids(metadata),
        # Segments and instances need masks at the size of the result, so class scores are not resized either.
        resize_masks_first=node.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or node.PANOPTIC_ON or node.INSTANCE_ON,
    )


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
