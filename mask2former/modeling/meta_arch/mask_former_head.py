"""The head: a pixel decoder followed by a transformer decoder.

Shapes:
    B: images; C: channels of a map; H, W: its height and width
"""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...config import ConfigError
from ..transformer_decoder import TRANSFORMER_DECODER_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Maps from the backbone to predictions of classes and masks."""

    @configurable
    def __init__(self, pixel_decoder: nn.Module, predictor: nn.Module) -> None:
        """Combine the two parts."""
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build the parts that the config names.

        Raises:
            ConfigError: A key of MaskFormer has a value that Mask2Former does not support.
        """
        node = cfg.MODEL.MASK_FORMER
        for key, only in (("TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"), ("ENC_LAYERS", 0)):
            if node[key] != only:
                raise ConfigError(f"MODEL.MASK_FORMER.{key} is {node[key]!r}; only {only!r} is supported")
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "pixel_decoder": SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)(cfg, input_shape),
            "predictor": TRANSFORMER_DECODER_REGISTRY.get(node.TRANSFORMER_DECODER_NAME)(cfg, head.CONVS_DIM),
        }

    def forward(self, features: dict[str, Tensor], aux_outputs: bool = True) -> dict[str, Any]:
        """Map {name: [B, C, H, W]} to the predictions of the transformer decoder, see its `forward`."""
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features, aux_outputs)
