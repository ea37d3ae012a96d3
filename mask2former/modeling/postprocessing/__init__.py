"""From class and mask predictions of one image to semantic, panoptic and instance results.

Masks come as a `MaskSource`, which makes them at the size of the result a strip of rows at a time: all of them may need
more memory than there is. `infer` makes several results in one pass over the strips; the functions make one.

Shapes, here and in the modules:
    Q: queries; N: some of them, or instances; K: classes; H, W: height and width of the result; h: rows of a strip
"""

from .instance import InstanceResult, instance_inference, mask_boxes
from .panoptic import PanopticResult, panoptic_inference
from .semantic import SemanticClasses, SemanticScores, semantic_classes, semantic_inference
from .strips import MaskSource, Result, infer

__all__ = [
    "InstanceResult",
    "MaskSource",
    "PanopticResult",
    "Result",
    "SemanticClasses",
    "SemanticScores",
    "infer",
    "instance_inference",
    "mask_boxes",
    "panoptic_inference",
    "semantic_classes",
    "semantic_inference",
]
