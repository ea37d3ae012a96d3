"""The meta-architecture of image classifiers: normalisation, backbone, mean over positions, linear head.

Shapes:
    B: images; H, W: height and width of the images; C: channels of the last map; K: classes
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from dinat_common.errors import ConfigError

from .base import MetaArchitecture


class ClassLogits(NamedTuple):
    """Raw output of a classifier for one image.

    Attributes:
        logits: Class logits [K].
        image_size: Height and width of the input.
    """

    logits: Tensor
    image_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the output, on any device."""
        return self.logits.nbytes

    def results(self, size: tuple[int, int] | None = None, settings: Any = None) -> dict[str, Tensor]:
        """Compute `class_scores`, the class probabilities [K]; size and settings change nothing."""
        return {"class_scores": self.logits.softmax(0)}


@META_ARCH_REGISTRY.register()
class ImageClassifier(MetaArchitecture):
    """Classification of whole images with any Detectron2 backbone, as published for NAT and DiNAT.

    The backbone's last output, which is normalised already, is averaged over all positions (Hassani et al.,
    "Neighborhood Attention Transformer", CVPR 2023, and Hassani and Shi, arXiv 2209.15001).

    The images of a batch have one size. The target of training is `label`: a class id, or a distribution over the
    classes [K]. The result is `class_scores`, the probabilities [K], whatever the requested size and the settings.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        label_smoothing: float = 0.0,
        bfloat16_inference: bool = False,
        compile_network: bool = False,
    ) -> None:
        """Set the parts.

        Args:
            backbone: Detectron2 backbone.
            num_classes: Number of classes.
            pixel_mean: Mean of each channel, in the units of the input.
            pixel_std: Standard deviation of each channel, in the units of the input.
            label_smoothing: Share of a target that is spread evenly over all classes. Targets that are given as
                distributions stay as they are.
            bfloat16_inference: Predict in bfloat16 autocast; scores are computed in float32.
            compile_network: Run the backbone through `torch.compile`, as one graph.

        Raises:
            ConfigError: The number of classes or the smoothing is outside its range.
        """
        if num_classes < 1:
            raise ConfigError(f"MODEL.CLASSIFIER.NUM_CLASSES is {num_classes}, expected at least 1")
        if not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"MODEL.CLASSIFIER.LABEL_SMOOTHING is {label_smoothing}, expected at least 0 and less than 1"
            )
        super().__init__(
            backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std, bfloat16_inference=bfloat16_inference
        )
        self.feature, shape = list(backbone.output_shape().items())[-1]
        self.head = nn.Linear(shape.channels, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = label_smoothing
        if compile_network:
            self.backbone.compile(fullgraph=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the backbone and read `MODEL.CLASSIFIER`."""
        return {
            **super().from_config(cfg),
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            "label_smoothing": cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
        }

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[ClassLogits]:
        """Class logits of each image, in float32."""
        images = self.preprocess(batched_inputs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16_inference):
            logits = self.logits(images)
        size = (images.shape[-2], images.shape[-1])
        return [ClassLogits(of_image, size) for of_image in logits.float()]

    def logits(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to class logits [B, K]."""
        return self.head(self.backbone(images)[self.feature].mean((2, 3)))

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute `loss_cls`, the mean cross entropy of the images; in evaluation mode, without drop path.

        The arguments are those of `LossesOrResults.losses`.
        """
        labels = torch.stack([torch.as_tensor(inputs["label"]) for inputs in batched_inputs]).to(self.device)
        # The published loss leaves distributions, which mixing has smoothed already, as they are.
        smoothing = 0.0 if labels.is_floating_point() else self.label_smoothing
        logits = self.logits(self.preprocess(batched_inputs))
        total = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")
        return {"loss_cls": total / (len(batched_inputs) if target_counts is None else sum(target_counts))}

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """Normalise the images of a batch, [B, 3, H, W]."""
        images = torch.stack([inputs["image"].to(self.device) for inputs in batched_inputs])
        return self.normalise(images)
