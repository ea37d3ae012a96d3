"""Which metrics a data set gets."""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from mask2former.evaluation.cityscapes_instance import CityscapesAP
from mask2former.evaluation.cityscapes_semantic import CityscapesIoU
from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.evaluator import StreamingEvaluator
from mask2former.evaluation.instance import InstanceAP
from mask2former.evaluation.metric import Metric
from mask2former.evaluation.panoptic import PanopticQuality
from mask2former.evaluation.semantic import SemanticIoU

# For each `evaluator_type` of a data set's metadata, what can be measured on it: the output of the model that it needs
# (a switch of MODEL.MASK_FORMER.TEST), and the metric. ADE20K's sets have COCO's types.
_METRICS: dict[str, tuple[tuple[str, type[Metric]], ...]] = {
    "coco": (("INSTANCE_ON", InstanceAP),),
    "coco_panoptic_seg": (
        ("PANOPTIC_ON", PanopticQuality),
        ("INSTANCE_ON", InstanceAP),
        ("SEMANTIC_ON", SemanticIoU),
    ),
    "sem_seg": (("SEMANTIC_ON", SemanticIoU),),
    "cityscapes_instance": (("INSTANCE_ON", CityscapesAP),),
    "cityscapes_sem_seg": (("SEMANTIC_ON", CityscapesIoU),),
    "cityscapes_panoptic_seg": (
        ("PANOPTIC_ON", PanopticQuality),
        ("INSTANCE_ON", CityscapesAP),
        ("SEMANTIC_ON", CityscapesIoU),
    ),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path | None) -> StreamingEvaluator:
    """Build the evaluator of the outputs that `cfg` switches on and the data set has ground truth for.

    Args:
        cfg: the config.
        dataset_name: a registered data set; its metadata has `evaluator_type`.
        output_dir: where predictions are kept; None: nowhere.

    Raises:
        EvaluationError: an unknown `evaluator_type`, or nothing to measure.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _METRICS:
        raise EvaluationError(
            f"data set {dataset_name}: evaluator_type {kind!r} is unknown; known are {', '.join(sorted(_METRICS))}"
        )
    switches = cfg.MODEL.MASK_FORMER.TEST
    metrics: list[Metric] = []
    for switch, metric in _METRICS[kind]:
        lacking = [key for key in metric.needs if not metadata.get(key)]
        if switches[switch] and lacking:
            logging.getLogger(__name__).info(
                "%s is not evaluated on %s, which has no %s", switch, dataset_name, ", ".join(lacking)
            )
        elif switches[switch]:
            metrics.append(metric(dataset_name))
    if not metrics:
        wanted = ", ".join(switch for switch, _ in _METRICS[kind])
        raise EvaluationError(
            f"data set {dataset_name} ({kind}) can't be evaluated: none of MODEL.MASK_FORMER.TEST.{{{wanted}}} is on "
            "and has ground truth"
        )
    return StreamingEvaluator(metrics, output_dir)
