"""Heads, registered in Detectron2's `SEM_SEG_HEADS`."""

from .mask_former_head import MaskFormerHead

__all__ = ["MaskFormerHead"]
