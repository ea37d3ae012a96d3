"""Heads that classify pixels, registered in Detectron2's `SEM_SEG_HEADS`."""

from .upernet import FCNHead, UPerNetHead

__all__ = ["FCNHead", "UPerNetHead"]
