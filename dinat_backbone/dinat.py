"""NAT and DiNAT: overlapping convolutions between the levels.

NAT is Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143); DiNAT, Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (arXiv 2209.15001), is NAT with dilation in every second block.
"""

import torch
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from .backbone import FromConfig, HierarchicalBackbone
from .classifier import Classifier
from .hierarchy import Hierarchy, Parts


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2, with nothing between them, and a LayerNorm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, dim // 2, kernel_size=3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/4, W/4, dim], sides rounded up."""
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels, and a LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to [B, H/2, W/2, 2C], sides rounded up."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


_PARTS = Parts(ConvTokenizer, ConvDownsampler, levels="levels")


class DiNAT(HierarchicalBackbone):
    """NAT or DiNAT without its classifier: maps of strides 4, 8, 16, 32, each normalized by a LayerNorm."""

    parts = _PARTS


class DiNATClassifier(Classifier, Hierarchy):
    """NAT or DiNAT as an image classifier."""

    parts = _PARTS


@BACKBONE_REGISTRY.register()
class D2DiNAT(FromConfig, DiNAT):
    """`DiNAT` built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    unused_keys = ("PATCH_SIZE", "IMAGE_SIZE")
