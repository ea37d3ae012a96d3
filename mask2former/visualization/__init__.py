"""Pictures of segmentation results: overlays on the image, and panels that put pictures side by side."""

from mask2former.visualization.classes import ClassTable
from mask2former.visualization.draw import draw_instances, draw_panoptic, draw_semantic
from mask2former.visualization.panels import contact_sheet, side_by_side, write_png

__all__ = [
    "ClassTable",
    "contact_sheet",
    "draw_instances",
    "draw_panoptic",
    "draw_semantic",
    "side_by_side",
    "write_png",
]
