"""The parts of Mask2Former and of other models; importing this registers those that configs name."""

from .detection import CascadeMaskRCNNHeads, MaskRCNNHeads, MaskRCNNProposals
from .meta_arch import ImageClassifier, MaskFormerHead, MaskRCNN
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "CascadeMaskRCNNHeads",
    "ImageClassifier",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNProposals",
    "MultiScaleMaskedTransformerDecoder",
]
