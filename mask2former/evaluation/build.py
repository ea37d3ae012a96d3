"""Which evaluators a data set gets."""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.instance import InstanceEvaluator
from mask2former.evaluation.panoptic import PanopticEvaluator
from mask2former.evaluation.semantic import SemanticEvaluator

_Evaluator = type[PanopticEvaluator | InstanceEvaluator | SemanticEvaluator]

# For each `evaluator_type` of a data set's metadata, what can be measured on it: the output of the model that it needs
# (a switch of MODEL.MASK_FORMER.TEST), and the evaluator.
_EVALUATORS: dict[str, tuple[tuple[str, _Evaluator], ...]] = {
    "coco": (("INSTANCE_ON", InstanceEvaluator),),
    "coco_panoptic_seg": (
        ("PANOPTIC_ON", PanopticEvaluator),
        ("INSTANCE_ON", InstanceEvaluator),
        ("SEMANTIC_ON", SemanticEvaluator),
    ),
    "sem_seg": (("SEMANTIC_ON", SemanticEvaluator),),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path | None) -> DatasetEvaluator:
    """Build the evaluators for the outputs that `cfg` switches on and the data set has ground truth for.

    Args:
        cfg: the config.
        dataset_name: a registered data set; its metadata has `evaluator_type`.
        output_dir: where evaluators keep predictions; None: nowhere.

    Raises:
        EvaluationError: an unknown `evaluator_type`, or nothing to measure.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _EVALUATORS:
        raise EvaluationError(
            f"data set {dataset_name}: evaluator_type {kind!r} is unknown; known are {', '.join(sorted(_EVALUATORS))}"
        )
    switches = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    for switch, evaluator in _EVALUATORS[kind]:
        lacking = [key for key in evaluator.needs if not metadata.get(key)]
        if switches[switch] and lacking:
            logging.getLogger(__name__).info(
                "%s is not evaluated on %s, which has no %s", switch, dataset_name, ", ".join(lacking)
            )
        elif switches[switch]:
            evaluators.append(evaluator(dataset_name, output_dir))
    if not evaluators:
        wanted = ", ".join(switch for switch, _ in _EVALUATORS[kind])
        raise EvaluationError(
            f"data set {dataset_name} ({kind}) can't be evaluated: none of MODEL.MASK_FORMER.TEST.{{{wanted}}} is on "
            "and has ground truth"
        )
    return DatasetEvaluators(evaluators)
