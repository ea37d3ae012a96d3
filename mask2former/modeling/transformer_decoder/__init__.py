"""Transformer decoders, registered in `TRANSFORMER_DECODER_REGISTRY`."""

from .mask2former_transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    MultiScaleMaskedTransformerDecoder,
    PositionEmbeddingSine,
)

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "MultiScaleMaskedTransformerDecoder", "PositionEmbeddingSine"]
