"""Parts of detectors, registered in Detectron2's registries of backbones, proposal generators and ROI heads."""

from .fpn import FPN, build_fpn
from .roi_heads import CascadeMaskRCNNHeads, MaskRCNNHeads
from .rpn import MaskRCNNProposals

__all__ = ["FPN", "CascadeMaskRCNNHeads", "MaskRCNNHeads", "MaskRCNNProposals", "build_fpn"]
