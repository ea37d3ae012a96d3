"""Metrics of data sets, measured on any device and in any number of processes, on one machine or several."""

from mask2former.evaluation.cityscapes import CityscapesAP, CityscapesIoU
from mask2former.evaluation.classification import ClassAccuracy
from mask2former.evaluation.coco import BoxAP, InstanceAP, PanopticQuality, SemanticIoU
from mask2former.evaluation.evaluator import StreamingEvaluator, build_evaluator
from mask2former.evaluation.inference import (
    Batches,
    Speed,
    json_ready,
    peak_memory,
    results_table,
    run_inference,
    write_speed,
)
from mask2former.evaluation.metric import EvaluationError
from mask2former.evaluation.records import config_digest, evaluation_fingerprint, weights_digest

__all__ = [
    "Batches",
    "BoxAP",
    "CityscapesAP",
    "CityscapesIoU",
    "ClassAccuracy",
    "EvaluationError",
    "InstanceAP",
    "PanopticQuality",
    "SemanticIoU",
    "Speed",
    "StreamingEvaluator",
    "build_evaluator",
    "config_digest",
    "evaluation_fingerprint",
    "json_ready",
    "peak_memory",
    "results_table",
    "run_inference",
    "weights_digest",
    "write_speed",
]
