"""Builders of the parts that a config names."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import Registry
from torch import nn

# Transformer decoders: called with (cfg, in_channels), they map a pixel decoder's multi-scale maps (coarse to fine) and
# mask features to a dict of predictions; see `MultiScaleMaskedTransformerDecoder.forward`.
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build `MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` for a backbone with outputs of `input_shape`."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)(cfg, input_shape)


def build_transformer_decoder(cfg: CfgNode, in_channels: int) -> nn.Module:
    """Build `MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME` for maps of `in_channels`."""
    return TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)(cfg, in_channels)
