"""Transformer decoders, registered in `TRANSFORMER_DECODER_REGISTRY`."""

from .mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder"]
