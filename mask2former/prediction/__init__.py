"""From an image to a result: the predictor, results, pictures of them, and files in and out."""

from mask2former.prediction.predictor import Predictor
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, Prediction, SemanticPrediction

__all__ = ["InstancePrediction", "PanopticPrediction", "Prediction", "Predictor", "SemanticPrediction"]
