"""From what a model returns for an image to a result."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.predictions.base import Prediction, Rgb
from mask2former.predictions.instance import InstancePrediction
from mask2former.predictions.panoptic import PanopticPrediction
from mask2former.predictions.semantic import SemanticPrediction
from mask2former.visualization import ClassTable
from mask2former.visualization.classes import Task


def from_model(output: dict[str, Any], image: Rgb, task: Task, classes: ClassTable, lowest_score: float) -> Prediction:
    """Make a result of one image's output.

    Args:
        output: of a Detectron2 model that has the task switched on, at the size of the image or smaller.
        image: RGB [H, W, 3].
        task: which of the outputs to use.
        classes: what the category ids mean.
        lowest_score: instances with a lower score are left out.
    """
    size = (image.shape[0], image.shape[1])
    if task == "panoptic":
        ids, info = output["panoptic_seg"]
        ids = _enlarged(ids.int().cpu().numpy(), size)
        return PanopticPrediction(classes=classes, image=image, ids=ids, segments_info=info)
    if task == "semantic":
        labels = output["sem_seg"]
        # Our model gives class ids, others in Detectron2 give scores of all classes.
        labels = (labels.argmax(dim=0) if labels.dim() == 3 else labels).int().cpu().numpy()
        return SemanticPrediction(classes=classes, image=image, labels=_enlarged(labels, size))
    instances = output["instances"]
    instances = instances[instances.scores >= lowest_score]
    instances = instances[instances.scores.argsort(descending=True, stable=True)].to("cpu")
    masks = [_enlarged(mask.numpy().astype(np.uint8), size).astype(bool) for mask in instances.pred_masks]
    return InstancePrediction(
        classes=classes,
        image=image,
        masks=np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        category_ids=instances.pred_classes.numpy(),
        scores=instances.scores.float().numpy(),
    )


def _enlarged(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Labels at `size` (height, width), without new values in between."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
