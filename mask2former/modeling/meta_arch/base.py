"""What the meta-architectures share: the way from a batch to losses or results, and the normalisation of images."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .. import inference
from ..inference import InferenceSettings, RawOutput
from ..pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

# Layers whose weights and biases autocast rounds to bfloat16 in every prediction, and modules that turn autocast off.
_ROUNDED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)
_COMPUTED_IN_FLOAT32 = (MSDeformAttnPixelDecoder,)
# Modules of other packages, such as a backbone of one's own, may turn autocast off anywhere: they are left alone.
_KNOWN_PACKAGES = ("torch", "torchvision", "detectron2", "dinat_backbone", "mask2former")


class LossesOrResults(nn.Module):
    """A model that gives losses in training mode and results otherwise.

    A subclass computes both: `losses` and `predict`. This class has no constructor, so that a model of Detectron2 can
    derive from it too.

    Attributes:
        inference_settings: Settings of calls that give no others; absent from a model without settings.
        bfloat16_inference: Whether predictions are made in bfloat16 autocast.
    """

    inference_settings: InferenceSettings
    bfloat16_inference: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments that all models take; a subclass adds its own."""
        return {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "bfloat16_inference": cfg.TEST.AMP,
            "compile_network": cfg.MODEL.COMPILE,
        }

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        target_counts: Sequence[int] | None = None,
        settings: InferenceSettings | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Compute losses in training mode, results otherwise.

        Args:
            batched_inputs: Dicts, one per image, with `image`, [3, H, W] in 0..255, whose channels have the order of
                `INPUT.FORMAT`; `height` and `width` (inference, optional), the size of the results, by default that
                of `image`; and the targets of the class (training).
            target_counts: Counts for the losses of a part of a batch (training), see `losses`.
            settings: Settings of this call (inference); None: those of the model.

        Returns:
            The weighted losses in training mode; otherwise one dict of results per image, see the class.
        """
        if self.training:
            return self.losses(batched_inputs, target_counts)
        settings = settings or getattr(self, "inference_settings", None) or InferenceSettings()
        results = []
        for output, inputs in zip(self.predict(batched_inputs), batched_inputs, strict=True):
            height, width = inputs["image"].shape[-2:]
            results.append(inference.run(output, (inputs.get("height", height), inputs.get("width", width)), settings))
        return results

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[RawOutput]:
        """Raw output of the network for each image; `inference.run` makes results of it."""
        raise NotImplementedError

    def losses(
        self, batched_inputs: list[dict[str, Any]], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of training inputs, also in evaluation mode.

        Args:
            batched_inputs: Dicts, one per image, see `forward`.
            target_counts: `count_targets` of the whole batch if `batched_inputs` is a part of it: the losses of all
                parts then add up to those of the whole.
        """
        raise NotImplementedError

    def count_targets(self, batched_inputs: list[dict[str, Any]]) -> list[int]:
        """Weight of each training input in the losses of a batch; here, all images count the same."""
        return [1] * len(batched_inputs)


def round_weights(model: nn.Module) -> None:
    """Keep in bfloat16 the weights that predictions in bfloat16 would round each time, and that nothing else needs.

    Autocast rounds all weights of linear layers and convolutions in each prediction. Rounded once, they give the same
    results and take half the memory. Other weights stay in float32, as in autocast, and so do parts from other packages
    and a model that predicts in float32.

    Args:
        model: A model with its final weights, which is not trained afterwards.
    """
    if isinstance(model, LossesOrResults) and model.bfloat16_inference:
        _round_layers(model)


def _round_layers(module: nn.Module) -> None:
    if isinstance(module, _COMPUTED_IN_FLOAT32):
        return
    if isinstance(module, _ROUNDED):
        # Children can be norms, so that `module.to` would change too much.
        for name, parameter in list(module.named_parameters(recurse=False)):
            rounded = nn.Parameter(parameter.detach().bfloat16(), parameter.requires_grad)
            module.register_parameter(name, rounded)
    for child in module.children():
        if type(child).__module__.partition(".")[0] in _KNOWN_PACKAGES:
            _round_layers(child)


class MetaArchitecture(LossesOrResults):
    """Normalisation of images and a backbone, to which a subclass adds the rest."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, *, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float], bfloat16_inference: bool
    ) -> None:
        """Set the parts; `normalise` and `predict` of a subclass use them.

        Args:
            backbone: Detectron2 backbone.
            pixel_mean: Mean of each channel, in the units of the input.
            pixel_std: Standard deviation of each channel, in the units of the input.
            bfloat16_inference: Predict in bfloat16 autocast.
        """
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.bfloat16_inference = bfloat16_inference

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images on the device of the model, [3, H, W] or [B, 3, H, W]."""
        return (images - self.pixel_mean) / self.pixel_std
