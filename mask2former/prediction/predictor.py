"""From an image to a prediction: a model built from a config, and what happens to an image on its way through it.

    predictor = Predictor.from_config("config.yaml", "model.pth")
    result = predictor("photo.jpg")
    picture, segments = result.draw(), result.segments()

No data set has to be on disk: class names and colours come with the code (`mask2former.data.datasets`).
"""

import logging
import math
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mask2former.config import setup_cfg
from mask2former.data.classes import ClassTable
from mask2former.data.datasets import predicted_metadata, register_custom_datasets
from mask2former.data.image_io import to_rgb
from mask2former.engine import Checkpointer, available_device
from mask2former.evaluation.fingerprint import config_digest, weights_digest
from mask2former.prediction.batching import batches_of_one_size, run_batch
from mask2former.prediction.results import Prediction, Rgb, from_model
from mask2former.tasks import Task, checked_task, possible_tasks

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image | NDArray[np.uint8]

# Below it an instance is more likely wrong than right; benchmarks count the top 100 of any score instead.
_INSTANCE_THRESHOLD = 0.5
# A mask per instance at the size of the result: 100 of 12 million pixels are 1.2 GB. Results for larger images are
# enlarged from that many pixels, which is more than the network sees (its input is at most 1333 x 1333).
_MAX_PIXELS = 12_000_000
# Images that a GPU predicts at once. A CPU gains nothing from more than one.
_GPU_BATCH = 4


class Predictor:
    """Predicts images.

    Attributes:
        model: the model, in evaluation mode.
        tasks: the results that its classes allow, the richest first.
        task: which of them it gives where a call does not say.
        confidence_threshold: lowest score of a segment or an instance where a call does not say. None: 0.5 for
            instances, the config's OBJECT_MASK_THRESHOLD for panoptic segments.
    """

    def __init__(
        self,
        model: nn.Module,
        metadata: Metadata,
        task: Task | None = None,
        *,
        resize: ResizeShortestEdge,
        image_format: str = "RGB",
        confidence_threshold: float | None = None,
        max_pixels: int = _MAX_PIXELS,
        config_digest: str = "",
    ):
        """Set the parts.

        Args:
            model: a `MaskFormer`, or what takes and returns the same and has its switches (`panoptic_on` ...).
            metadata: names and colours of its classes.
            task: by default the richest that the model has on.
            resize: what makes an image the size that the model was trained for.
            image_format: order of the channels that the model expects, "RGB" or "BGR".
            confidence_threshold: see the class.
            max_pixels: results for larger images are predicted at this size and enlarged.
            config_digest: stands for the config in `fingerprint`.

        Raises:
            ConfigError: the classes do not allow the task, or the threshold does not fit.
        """
        self.model = model.eval()
        self.tasks = possible_tasks(metadata)
        self.task = checked_task(task or _first_on(self.tasks, model), confidence_threshold, metadata)
        self.confidence_threshold = confidence_threshold
        self._metadata = metadata
        self._resize = resize
        self._image_format = image_format
        self._max_pixels = max_pixels
        self._config_digest = config_digest
        # A model that knows stuff needs the panoptic output on to keep stuff out of the instances.
        self._panoptic_model = bool(getattr(model, "panoptic_on", False))
        self._segment_threshold = float(getattr(model, "object_mask_threshold", 0.0))
        # The model's switches are set for each call.
        self._lock = threading.Lock()

    @classmethod
    def from_config(
        cls,
        config_file: str | Path,
        weights: str | Path | None = None,
        opts: Sequence[str] = (),
        device: str | torch.device | None = None,
        *,
        task: Task | None = None,
        confidence_threshold: float | None = None,
    ) -> "Self":
        """Build the model of a config file and load its weights.

        Args:
            config_file: a file of `configs/`, or the `config.yaml` that a training left.
            weights: a checkpoint; see `MODEL.WEIGHTS` in README. None: that of the config.
            opts: config keys and values in turn.
            device: by default MODEL.DEVICE in `opts`, else a GPU if there is one, else the CPU.
            task: "panoptic", "instance" or "semantic"; by default the richest that the config has on.
            confidence_threshold: lowest score of a segment or an instance, see the class.

        Raises:
            ConfigError: the config can't be used, or the model has no such task.
            CheckpointError: the weights can't be used.
            DeviceError: there is no such device.
        """
        cfg = setup_cfg(config_file, opts)
        cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, Path(config_file).parent)
        if weights is not None:
            cfg.MODEL.WEIGHTS = str(weights)
        explicit = device is not None or "MODEL.DEVICE" in opts
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE if device is None else str(device), explicit=explicit)
        return cls.from_cfg(cfg, task, confidence_threshold)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, task: Task | None = None, confidence_threshold: float | None = None) -> "Self":
        """Build the model of a config (from `mask2former.setup_cfg`) and load MODEL.WEIGHTS; `cfg` stays as it is.

        Raises:
            ConfigError: the model has no such task, or the threshold does not fit.
            CheckpointError: MODEL.WEIGHTS can't be used.
        """
        metadata = predicted_metadata(cfg)
        if not cfg.MODEL.WEIGHTS:
            _LOG.warning("MODEL.WEIGHTS is empty: the weights are random, so the results mean nothing")
        if task is not None:
            checked_task(task, confidence_threshold, metadata)
        model = build_model(cfg.clone())
        model.semantic_scores = False
        predictor = cls(
            model,
            metadata,
            task,
            resize=ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            image_format=cfg.INPUT.FORMAT,
            confidence_threshold=confidence_threshold,
            config_digest=config_digest(cfg, augmented=False),
        )
        Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        return predictor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters(), torch.zeros(0)).device

    @property
    def batch_size(self) -> int:
        """How many images go through the model at once where a call does not say."""
        return _GPU_BATCH if self.device.type == "cuda" else 1

    def classes(self, task: Task | None = None) -> ClassTable:
        """Names and colours of the classes that results of a task (by default the predictor's) are numbered by."""
        return ClassTable.from_metadata(self._metadata, task or self.task)

    def default_threshold(self, task: Task) -> float:
        """Lowest score of a segment or an instance of a task where a call does not say."""
        if task == self.task and self.confidence_threshold is not None:
            return self.confidence_threshold
        return _INSTANCE_THRESHOLD if task == "instance" else self._segment_threshold

    def fingerprint(self) -> dict[str, Any]:
        """What a prediction depends on, JSON-ready: two predictors with one fingerprint give the same results."""
        return {
            "config": self._config_digest,
            "weights": weights_digest(self.model),
            "task": self.task,
            "confidence threshold": self.confidence_threshold,
        }

    @overload
    def __call__(
        self, images: ImageLike, *, task: Task | None = ..., confidence_threshold: float | None = ...
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        *,
        task: Task | None = ...,
        confidence_threshold: float | None = ...,
        batch_size: int | None = ...,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        task: Task | None = None,
        confidence_threshold: float | None = None,
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict one image, or several.

        Images of one size go through the model together. Those of different sizes do not: the smaller would be padded
        to the larger, which changes results slightly.

        Args:
            images: a path, a Pillow image or an array (uint8 RGB [H, W, 3]; see `image_io.to_rgb`), or a list of these.
            task: by default the predictor's.
            confidence_threshold: likewise.
            batch_size: most images at once; by default 4 on a GPU, 1 on a CPU.

        Returns:
            The result, or a list of results in the order of the images.

        Raises:
            ImageReadError: an image can't be read; the message says which.
            ConfigError: the classes do not allow the task, or the threshold does not fit.
        """
        task = checked_task(task or self.task, confidence_threshold, self._metadata)
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return self._predict([to_rgb(images)], task, confidence_threshold)[0]
        pixels = [to_rgb(image) for image in images]
        results: dict[int, Prediction] = {}
        for batch in batches_of_one_size(pixels, batch_size or self.batch_size):
            predictions = self._predict([pixels[i] for i in batch], task, confidence_threshold)
            results.update(zip(batch, predictions, strict=True))
        return [results[i] for i in range(len(pixels))]

    @torch.inference_mode()
    def _predict(self, images: Sequence[Rgb], task: Task, threshold: float | None) -> list[Prediction]:
        """Predict images of one size at once."""
        inputs = [self._input(image) for image in images]
        lowest = self.default_threshold(task) if threshold is None else threshold
        with self._switched(task, lowest):
            outputs = run_batch(self.model, inputs)
        classes = self.classes(task)
        return [from_model(o, i, task, classes, lowest) for o, i in zip(outputs, images, strict=True)]

    @contextmanager
    def _switched(self, task: Task, threshold: float) -> Generator[None, None, None]:
        """The model gives results of this task alone, for one caller at a time."""
        switches = {
            "panoptic_on": task == "panoptic" or (task == "instance" and self._panoptic_model),
            "instance_on": task == "instance",
            "semantic_on": task == "semantic",
            # Where panoptic is on for the sake of instances, nobody wants a segment: this saves their making.
            "object_mask_threshold": threshold if task == "panoptic" else 1.0,
        }
        with self._lock:
            for name, value in switches.items():
                setattr(self.model, name, value)
            yield

    def _input(self, image: Rgb) -> dict[str, Any]:
        height, width = image.shape[:2]
        shrink = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        pixels = self._resize.get_transform(image).apply_image(image)
        if self._image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": tensor, "height": max(1, round(height * shrink)), "width": max(1, round(width * shrink))}


def _first_on(tasks: Sequence[Task], model: nn.Module) -> Task | None:
    return next((task for task in tasks if getattr(model, f"{task}_on", False)), None)
