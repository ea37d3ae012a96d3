"""Pixel decoders, registered in Detectron2's `SEM_SEG_HEADS`."""

from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["MSDeformAttnPixelDecoder"]
