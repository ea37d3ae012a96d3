"""Heads and meta-architectures, registered in Detectron2's `SEM_SEG_HEADS` and `META_ARCH`."""

from .mask_former_head import MaskFormerHead
from .mask_rcnn import MaskRCNN

__all__ = ["MaskFormerHead", "MaskRCNN"]
