"""The parts of Mask2Former; importing this registers those that configs name."""

from .detection import CascadeMaskRCNNHeads, MaskRCNNHeads, MaskRCNNProposals
from .meta_arch import MaskFormerHead, MaskRCNN
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "CascadeMaskRCNNHeads",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNProposals",
    "MultiScaleMaskedTransformerDecoder",
]
