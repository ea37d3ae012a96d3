"""Heads and meta-architectures, registered in Detectron2's `SEM_SEG_HEADS` and `META_ARCH`."""

from .image_classifier import ClassLogits, ImageClassifier
from .mask_former_head import MaskFormerHead
from .mask_rcnn import MaskRCNN
from .pixel_classifier import PixelClassifier

__all__ = ["ClassLogits", "ImageClassifier", "MaskFormerHead", "MaskRCNN", "PixelClassifier"]
