"""Semantic segmentation by classification of pixels: normalisation, backbone, head, then losses or results.

Shapes:
    B: images; K: classes; h, w: height and width of the logits; H, W: height and width of an image
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ...config import ConfigError
from ..inference import InferenceSettings, PixelScores
from ..mask_resizing import Size
from .base import MetaArchitecture

# Label of pixels without a class. There may be more than 255 classes.
_IGNORED = -1


@META_ARCH_REGISTRY.register()
class PixelClassifier(MetaArchitecture):
    """A backbone and a head that gives class logits of pixels, such as UPerNet.

    Images are neither padded nor resized in prediction. Logits are resized bilinearly to the size of the input, and
    from there to the requested size; then follow a softmax and the choice of the best class.

    Targets of training are `instances`: `Instances` with `gt_classes` int64 [M] and `gt_masks` bool [M, H, W], one per
    class; other pixels have no class. The result is `sem_seg`, class probabilities [K, height, width] (with
    `semantic_scores` off, class ids int64 [height, width]).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        auxiliary_head: nn.Module | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        loss_weight: float = 1.0,
        auxiliary_loss_weight: float = 0.4,
        size_divisibility: int = 0,
        windows: tuple[Size, Size] | None = None,
        inference_settings: InferenceSettings,
        bfloat16_inference: bool = False,
        compile_network: bool = False,
    ) -> None:
        """Set the parts.

        Args:
            backbone: Detectron2 backbone.
            sem_seg_head: Module that maps the features of the backbone to logits [B, K, h, w].
            auxiliary_head: Module of the same kind for a further loss, which prediction does not use.
            pixel_mean: Mean of each channel, in the units of the input.
            pixel_std: Standard deviation of each channel, in the units of the input.
            loss_weight: Weight of the head's loss.
            auxiliary_loss_weight: Weight of the auxiliary head's loss.
            size_divisibility: Multiple that the sides of training images are padded to, with zeros after the
                normalisation; 0: only to the size of the largest.
            windows: Size and stride of the windows that an image is predicted in; None: as a whole.
            inference_settings: Settings of prediction; the only task is "semantic".
            bfloat16_inference: Predict in bfloat16 autocast; results are made in float32.
            compile_network: Run backbone and head through `torch.compile`, each as one graph.
        """
        super().__init__(
            backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std, bfloat16_inference=bfloat16_inference
        )
        self.sem_seg_head = sem_seg_head
        self.auxiliary_head = auxiliary_head
        self.loss_weight = loss_weight
        self.auxiliary_loss_weight = auxiliary_loss_weight
        self.size_divisibility = size_divisibility
        self.windows = windows
        self.inference_settings = inference_settings
        if compile_network:
            self.backbone.compile(fullgraph=True)
            self.sem_seg_head.compile(fullgraph=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that `MODEL.SEM_SEG_HEAD`, `AUXILIARY_HEAD` and `PIXEL_CLASSIFIER` describe.

        Raises:
            ConfigError: A value can't be used.
        """
        backbone = build_backbone(cfg)
        auxiliary, node = cfg.MODEL.AUXILIARY_HEAD, cfg.MODEL.PIXEL_CLASSIFIER
        build_auxiliary = SEM_SEG_HEADS_REGISTRY.get(auxiliary.NAME) if auxiliary.NAME else None
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "auxiliary_head": build_auxiliary and build_auxiliary(cfg, backbone.output_shape()),
            "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
            "auxiliary_loss_weight": auxiliary.LOSS_WEIGHT,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "windows": _build_windows(node),
            "inference_settings": InferenceSettings(tasks=("semantic",)),
        }

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[PixelScores]:
        """Raw output of the network for each image, in float32; `inference.run` makes results of it."""
        images = [self.normalise(inputs["image"].to(self.device)) for inputs in batched_inputs]
        if len({image.shape for image in images}) > 1:
            # Padding would change the results.
            return [scores for inputs in batched_inputs for scores in self.predict([inputs])]
        batch = torch.stack(images)
        logits = self.logits(batch) if self.windows is None else self._logits_in_windows(batch, *self.windows)
        image_size = (batch.shape[-2], batch.shape[-1])
        return [PixelScores(of_image, image_size) for of_image in logits]

    def logits(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to logits [B, K, h, w] in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16_inference and not self.training):
            return self.sem_seg_head(self.backbone(images)).float()

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of training inputs; in evaluation mode, without dropout.

        As in the published runs, the cross entropy of an image is summed over its labelled pixels and divided by the
        number of all its pixels. The arguments are those of `LossesOrResults.losses`; with `target_counts`, statistics
        of batch norms remain those of the part.

        Raises:
            ConfigError: Batch norms can't be trained on one image.
        """
        divisibility = self.size_divisibility if self.training else 0
        normalised = [self.normalise(inputs["image"].to(self.device)) for inputs in batched_inputs]
        images = ImageList.from_tensors(normalised, divisibility)
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        labels = torch.stack([_label_map(inputs["instances"].to(self.device), size) for inputs in batched_inputs])
        count = len(batched_inputs) if target_counts is None else sum(target_counts)
        features = self.backbone(images.tensor)
        heads = {"loss_sem_seg": (self.sem_seg_head, self.loss_weight)}
        if self.auxiliary_head is not None:
            heads["loss_auxiliary"] = (self.auxiliary_head, self.auxiliary_loss_weight)
        try:
            logits = {name: head(features) for name, (head, _) in heads.items()}
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "SOLVER.IMS_PER_BATCH gives one image per process, and the batch norms of the head need two: set "
                "SOLVER.IMS_PER_BATCH to at least twice the number of processes"
            ) from error
        return {name: heads[name][1] * _cross_entropy(x, labels) / count for name, x in logits.items()}

    def _logits_in_windows(self, images: Tensor, size: Size, stride: Size) -> Tensor:
        """Mean of the logits of all windows that a pixel is in: [B, K, H, W]."""
        total, count = images.new_zeros(()), images.new_zeros(images.shape[-2:])
        for rows in _windows(images.shape[-2], size[0], stride[0]):
            for columns in _windows(images.shape[-1], size[1], stride[1]):
                window = images[:, :, rows, columns]
                logits = F.interpolate(self.logits(window), size=window.shape[-2:], mode="bilinear")
                if not total.ndim:
                    total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
                total[:, :, rows, columns] += logits
                count[rows, columns] += 1
        return total / count


def _windows(length: int, size: int, stride: int) -> Iterator[slice]:
    """Windows at multiples of a stride, the last one moved inwards; all of a length that is not larger than one."""
    for start in range(0, max(length - size, 0) + stride, stride):
        start = max(0, min(start, length - size))
        yield slice(start, min(start + size, length))


def _label_map(instances: Instances, size: Size) -> Tensor:
    """Class of each pixel, int64, at the size of the padded images."""
    labels = torch.full(size, _IGNORED, dtype=torch.int64, device=instances.gt_classes.device)
    inside = labels[: instances.image_size[0], : instances.image_size[1]]
    for category, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        inside[mask] = category
    return labels


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the images of the mean cross entropy of their pixels, which is zero without a label."""
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear")
    total = F.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum")
    return total / (labels.shape[-2] * labels.shape[-1])


def _build_windows(node: CfgNode) -> tuple[Size, Size] | None:
    """Size and stride of the windows; None for whole images."""
    values = [list(node.WINDOW_SIZE), list(node.WINDOW_STRIDE)]
    if not values[0]:
        return None
    for key, value in zip(("WINDOW_SIZE", "WINDOW_STRIDE"), values, strict=True):
        if len(value) != 2 or any(side < 1 for side in value):
            raise ConfigError(f"MODEL.PIXEL_CLASSIFIER.{key} is {value}, expected two numbers of pixels")
    (size, stride) = ((first, second) for first, second in values)
    if stride[0] > size[0] or stride[1] > size[1]:
        raise ConfigError(
            f"MODEL.PIXEL_CLASSIFIER.WINDOW_STRIDE {list(stride)} is larger than WINDOW_SIZE {list(size)}: pixels "
            "between the windows would have no class"
        )
    return size, stride
