"""From an image to a result: the predictor, results, pictures of them, and files in and out."""

from mask2former.prediction.base import Prediction
from mask2former.prediction.classification import ClassificationPrediction
from mask2former.prediction.predictor import Predictor
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, SemanticPrediction

__all__ = [
    "ClassificationPrediction",
    "InstancePrediction",
    "PanopticPrediction",
    "Prediction",
    "Predictor",
    "SemanticPrediction",
]
