"""The parts of Mask2Former and of other models; importing this registers those that configs name."""

from .detection import CascadeMaskRCNNHeads, MaskRCNNHeads, MaskRCNNProposals
from .meta_arch import ImageClassifier, MaskFormerHead, MaskRCNN, PixelClassifier
from .pixel_decoder import MSDeformAttnPixelDecoder
from .sem_seg_heads import FCNHead, UPerNetHead
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "CascadeMaskRCNNHeads",
    "FCNHead",
    "ImageClassifier",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNProposals",
    "MultiScaleMaskedTransformerDecoder",
    "PixelClassifier",
    "UPerNetHead",
]
