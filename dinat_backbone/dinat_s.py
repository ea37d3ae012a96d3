"""DiNATs: DiNAT's attention in the shape of Swin, with patches of 4x4 pixels and patch merging.

The models are the variant "DiNAT_s" of Hassani and Shi, "Dilated Neighborhood Attention Transformer" (arXiv
2209.15001); the shape is that of Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.1.
"""

from functools import partial

from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from .backbone import FromConfig, HierarchicalBackbone
from .blocks import PatchTokenizer, pad_to_multiple
from .classifier import Classifier
from .hierarchy import Hierarchy, Parts


class PatchMerging(nn.Module):
    """Joins the channels of 2x2 neighbors, normalizes them, and halves them by a linear layer without bias.

    Maps are padded with zeros at the bottom and right to even sides. The neighbors (row, column) are joined in the
    order (0, 0), (1, 0), (0, 1), (1, 1).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to [B, H/2, W/2, 2C], sides rounded up."""
        x = pad_to_multiple(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        neighbors = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(neighbors.flatten(3)))


_PARTS = Parts(partial(PatchTokenizer, patch_size=4), PatchMerging, levels="layers")


class DiNATs(HierarchicalBackbone):
    """DiNATs without its classifier: maps of strides 4, 8, 16, 32, each normalized by a LayerNorm."""

    parts = _PARTS


class DiNATsClassifier(Classifier, Hierarchy):
    """DiNATs as an image classifier."""

    parts = _PARTS


@BACKBONE_REGISTRY.register()
class D2DiNATs(FromConfig, DiNATs):
    """`DiNATs` built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    unused_keys = ("PATCH_SIZE", "IMAGE_SIZE")
