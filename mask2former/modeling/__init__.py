"""The parts of Mask2Former; importing this registers those that configs name."""

from .meta_arch import MaskFormerHead
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["MSDeformAttnPixelDecoder", "MaskFormerHead", "MultiScaleMaskedTransformerDecoder"]
