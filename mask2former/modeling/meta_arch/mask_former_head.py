"""The head: a pixel decoder followed by a transformer decoder."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..build import build_pixel_decoder, build_transformer_decoder


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone maps to class and mask predictions."""

    @configurable
    def __init__(self, pixel_decoder: nn.Module, predictor: nn.Module) -> None:
        """Put the two parts together."""
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build the parts that the config names.

        Raises:
            ValueError: a value of a published key that MaskFormer had and Mask2Former has not.
        """
        node = cfg.MODEL.MASK_FORMER
        for key, only in (("TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"), ("ENC_LAYERS", 0)):
            if node[key] != only:
                raise ValueError(f"MODEL.MASK_FORMER.{key} is {node[key]!r}; only {only!r} is supported")
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "predictor": build_transformer_decoder(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
        }

    def forward(self, features: dict[str, Tensor], aux_outputs: bool = True) -> dict[str, Any]:
        """Map {name: [B, C, H, W]} to the predictions of the decoder, with its layers' if `aux_outputs`."""
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features, aux_outputs)
