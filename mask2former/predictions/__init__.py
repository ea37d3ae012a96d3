"""Results of one image: what was found, as arrays, as a picture and as plain data.

Glossary: H, W height and width of the image; N instances. Category ids are contiguous, as the model numbers them;
`to_coco` gives those of the data set's own files.
"""

from mask2former.predictions.base import Prediction, Rgb
from mask2former.predictions.from_json import from_segments
from mask2former.predictions.from_model import from_model
from mask2former.predictions.instance import InstancePrediction
from mask2former.predictions.panoptic import PanopticPrediction
from mask2former.predictions.semantic import SemanticPrediction

__all__ = [
    "InstancePrediction",
    "PanopticPrediction",
    "Prediction",
    "Rgb",
    "SemanticPrediction",
    "from_model",
    "from_segments",
]
