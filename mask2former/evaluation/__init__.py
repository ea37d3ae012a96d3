"""Evaluators that run on any device and in any number of processes, on one machine or several."""

from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.instance import InstanceEvaluator
from mask2former.evaluation.panoptic import PanopticEvaluator
from mask2former.evaluation.report import json_ready, results_table
from mask2former.evaluation.semantic import SemanticEvaluator

__all__ = [
    "EvaluationError",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "build_evaluator",
    "json_ready",
    "results_table",
]
