"""From an image to a prediction: a model built from a config, and what happens to an image on its way through it.

No data set has to be on disk: class names and colours come with the code (`mask2former.data.datasets`).
"""

import math
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from mask2former.config import ConfigError
from mask2former.data.datasets import dataset_metadata
from mask2former.engine import Checkpointer
from mask2former.predictions import InstancePrediction, PanopticPrediction, Prediction, SemanticPrediction
from mask2former.visualization import ClassTable
from mask2former.visualization.classes import Task

# From the richest result to the plainest, with the metadata that describes its classes.
_TASK_METADATA: dict[Task, tuple[str, ...]] = {
    "panoptic": ("stuff_classes", "thing_dataset_id_to_contiguous_id"),
    "instance": ("thing_classes",),
    "semantic": ("stuff_classes",),
}
# Below it an instance is more likely wrong than right; benchmarks count the top 100 of any score instead.
_INSTANCE_THRESHOLD = 0.5
# A mask per instance at the size of the result: 100 of 12 million pixels are 1.2 GB. Results for larger images are
# enlarged from that many pixels, which is more than the network sees (its input is at most 1333 x 1333).
_MAX_PIXELS = 12_000_000


class Predictor:
    """Predicts one image at a time.

    Attributes:
        model: the model, in evaluation mode.
        task: which result it gives.
    """

    def __init__(
        self,
        model: nn.Module,
        metadata: Metadata,
        task: Task,
        *,
        resize: ResizeShortestEdge,
        image_format: str = "RGB",
        instance_threshold: float = _INSTANCE_THRESHOLD,
        max_pixels: int = _MAX_PIXELS,
    ):
        """Set the parts.

        Args:
            model: a Detectron2 model (a list of dicts in, a list of dicts out) that has the task switched on.
            metadata: names and colours of its classes.
            task: which of its outputs to use.
            resize: what makes an image the size that the model was trained for.
            image_format: order of the channels that the model expects, "RGB" or "BGR".
            instance_threshold: instances with a lower score are left out.
            max_pixels: results for larger images are predicted at this size and enlarged.
        """
        self.model = model.eval()
        self.task = task
        self._metadata = metadata
        self._classes = ClassTable.from_metadata(metadata, task)
        self._resize = resize
        self._image_format = image_format
        self._instance_threshold = instance_threshold
        self._max_pixels = max_pixels

    @classmethod
    def from_config(
        cls, cfg: CfgNode, task: Task | None = None, confidence_threshold: float | None = None
    ) -> "Predictor":
        """Build the model of a config and load MODEL.WEIGHTS; `cfg` stays as it is.

        Args:
            cfg: from `mask2former.config.setup_cfg`.
            task: by default the richest one that the config has on.
            confidence_threshold: lowest score of a segment (panoptic; by default OBJECT_MASK_THRESHOLD) or an instance.

        Raises:
            ConfigError: the model has no such task, or the threshold does not fit.
            CheckpointError: MODEL.WEIGHTS can't be used.
        """
        metadata = _test_metadata(cfg)
        cfg = cfg.clone()
        task = select_task(cfg, metadata, task)
        if confidence_threshold is not None:
            if not 0 <= confidence_threshold <= 1:
                raise ConfigError(f"confidence threshold {confidence_threshold}: expected a number from 0 to 1")
            if task == "semantic":
                raise ConfigError("semantic results have no confidence threshold: every pixel gets its best class")
            cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = float(confidence_threshold)
        model = build_model(cfg)
        model.semantic_scores = False
        Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        return cls(
            model,
            metadata,
            task,
            resize=ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            image_format=cfg.INPUT.FORMAT,
            instance_threshold=_INSTANCE_THRESHOLD if confidence_threshold is None else confidence_threshold,
        )

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> Prediction:
        """Predict an RGB image [H, W, 3]."""
        height, width = image.shape[:2]
        shrink = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        pixels = self._resize.get_transform(image).apply_image(image)
        if self._image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": size[0], "width": size[1]}])[0]
        return self._prediction(output, (height, width))

    def _prediction(self, output: dict[str, Any], size: tuple[int, int]) -> Prediction:
        if self.task == "panoptic":
            ids, segments_info = output["panoptic_seg"]
            return PanopticPrediction(_enlarged(ids.int().cpu().numpy(), size), segments_info, self._classes)
        if self.task == "semantic":
            labels = output["sem_seg"]
            # Our model gives class ids, others in Detectron2 give scores of all classes.
            labels = (labels.argmax(dim=0) if labels.dim() == 3 else labels).int().cpu().numpy()
            things = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
            return SemanticPrediction(_enlarged(labels, size), self._classes, frozenset(things.values()))
        instances = output["instances"]
        instances = instances[instances.scores >= self._instance_threshold]
        instances = instances[instances.scores.argsort(descending=True, stable=True)].to("cpu")
        masks = [_enlarged(mask.numpy().astype(np.uint8), size).astype(bool) for mask in instances.pred_masks]
        return InstancePrediction(
            np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
            instances.pred_classes.numpy(),
            instances.scores.float().numpy(),
            self._classes,
        )


def select_task(cfg: CfgNode, metadata: Metadata, task: Task | None) -> Task:
    """Switch the outputs of a model's config, in place, to what one task needs.

    Args:
        cfg: not frozen.
        metadata: of the data set whose classes the model predicts.
        task: None: the richest one that the config has on.

    Returns:
        The task.

    Raises:
        ConfigError: the classes do not allow the task.
    """
    test = cfg.MODEL.MASK_FORMER.TEST
    possible = [name for name, keys in _TASK_METADATA.items() if all(metadata.get(key) for key in keys)]
    if task is None:
        task = next((name for name in possible if test[f"{name.upper()}_ON"]), None)
    if task not in possible:
        raise ConfigError(
            f"task {task or 'of this config'}: the classes of {metadata.name} allow {' or '.join(possible) or 'none'}"
        )
    # A model that knows stuff needs the panoptic output on to keep stuff out of the instances.
    panoptic = task == "panoptic" or (task == "instance" and test.PANOPTIC_ON)
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = panoptic, task == "instance", task == "semantic"
    return task


def _test_metadata(cfg: CfgNode) -> Metadata:
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ConfigError("DATASETS.TEST is empty: it names the data set whose classes the model predicts")
    try:
        return dataset_metadata(names[0])
    except ValueError as error:
        raise ConfigError(f"DATASETS.TEST: {error}") from error


def _enlarged(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Labels at `size` (height, width), without new values in between."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
