"""Metrics of data sets, measured on any device and in any number of processes, on one machine or several."""

from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.cityscapes_instance import CityscapesAP
from mask2former.evaluation.cityscapes_semantic import CityscapesIoU
from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.evaluator import StreamingEvaluator
from mask2former.evaluation.fingerprint import evaluation_fingerprint, weights_digest
from mask2former.evaluation.inference import Batches, Speed, run_inference, write_speed
from mask2former.evaluation.instance import InstanceAP
from mask2former.evaluation.panoptic import PanopticQuality
from mask2former.evaluation.report import json_ready, results_table
from mask2former.evaluation.semantic import SemanticIoU

__all__ = [
    "Batches",
    "CityscapesAP",
    "CityscapesIoU",
    "EvaluationError",
    "InstanceAP",
    "PanopticQuality",
    "SemanticIoU",
    "Speed",
    "StreamingEvaluator",
    "build_evaluator",
    "evaluation_fingerprint",
    "json_ready",
    "results_table",
    "run_inference",
    "weights_digest",
    "write_speed",
]
