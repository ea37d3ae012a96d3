"""From an image to a result: the model of a config, and the way of an image through it.

    predictor = Predictor.from_config("config.yaml", "model.pth")
    result = predictor("photo.jpg")
    picture, segments = result.draw(), result.segments()

No data set has to be on disk: class names and colours come with the code (`mask2former.data.datasets`).
"""

import logging
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast, overload

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dinat_common.errors import checked_fraction
from mask2former.checkpoint import Checkpointer, FileClasses
from mask2former.config import ConfigError, setup_cfg
from mask2former.data.build import build_test_transform
from mask2former.data.classes import ClassTable, read_class_names, with_class_names
from mask2former.data.datasets import predicted_metadata, register_custom_datasets
from mask2former.data.image_io import configured_range
from mask2former.data.photographs import ValueRange
from mask2former.engine import available_device
from mask2former.evaluation import config_digest, weights_digest
from mask2former.modeling import inference
from mask2former.modeling.inference import InferenceSettings, RawOutput
from mask2former.modeling.meta_arch.base import round_weights
from mask2former.prediction.base import Prediction
from mask2former.prediction.classification import ClassificationPrediction
from mask2former.prediction.drawing import Rgb
from mask2former.prediction.inputs import read_image, read_numbered, split
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, SemanticPrediction
from mask2former.tasks import (
    Task,
    architecture_of_model,
    checked_task,
    possible_tasks,
    tasks_of_model,
)
from mask2former.test_time_augmentation import ModelWithTTA, check_augmentation

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger(__name__)

# One image; `mask2former.prediction.inputs` says how each kind is read.
ImageLike = str | os.PathLike[str] | Image.Image | bytes | BinaryIO | NDArray[Any] | torch.Tensor

# Instances below it are more likely wrong than right; benchmarks count the best 100 of any score instead.
_INSTANCE_THRESHOLD = 0.5
# Each instance has a mask at the size of the result: 100 masks of 12 million pixels are 1.2 GB. Results of larger ones
# are made at this many pixels, which is more than the network sees (at most 1333 x 1333), and enlarged.
_MAX_PIXELS = 12_000_000
# Images that a GPU predicts at once. A CPU gains nothing from more than one.
_GPU_BATCH = 4

# The kind of result of each task.
RESULTS: Mapping[Task, type[Prediction]] = {
    kind.task: kind for kind in (PanopticPrediction, InstancePrediction, SemanticPrediction, ClassificationPrediction)
}


class Network(Protocol):
    """What a predictor needs of a model, whose meta-architecture is a key of `tasks.ARCHITECTURES`.

    A model with `inference_settings` takes its thresholds, and the tasks that the config turns on, from them.
    """

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    def eval(self) -> "Self":
        """The model itself, in evaluation mode."""
        ...

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[RawOutput]:
        """Raw output for each image, from which `inference.run` makes results."""
        ...


@dataclass(frozen=True, eq=False)
class Analysis:
    """An image and the raw output of the network for it, from which results of any task and threshold are made.

    Attributes:
        image: RGB image [H, W, 3].
        output: Raw output of the network.
        result_size: Height and width at which results are made, before they are enlarged to the size of the image.
    """

    image: Rgb
    output: RawOutput
    result_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the image and of the raw output, on any device."""
        return self.image.nbytes + self.output.nbytes

    def within(self, longer_side: int) -> "Analysis":
        """The analysis of the image shrunk to at most `longer_side` pixels; its results take less time.

        The raw output stays that of the larger image.
        """
        image = shrunk(self.image, longer_side)
        if image is self.image:
            return self
        return replace(self, image=image, result_size=(image.shape[0], image.shape[1]))


def _stop_threads() -> None:
    """Compute in one thread: a forked process has none of the pools of its parent, and would wait for them forever."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # no pool; with 1, OpenCV waits for the pool to end


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_threads)


class Predictor:
    """Predicts images; a call leaves the model and the predictor as they were, so threads may share a predictor.

    A predictor can be pickled, for processes of its own (multiprocessing's "spawn"). Forked processes may use one that
    is on a CPU; they compute in one thread.

    `predictor(image)` is `predictor.result(predictor.analyze(image))`. The first of these two stages runs the network,
    the second makes a result for a task and thresholds, as often as needed.

    Attributes:
        model: Model in evaluation mode.
        tasks: Tasks that its classes allow, the richest first.
        task: Task of calls that name no other.
        confidence_threshold: Lowest score of a segment or an instance in calls that name no other. None: 0.5 for
            instances, the config's OBJECT_MASK_THRESHOLD for panoptic segments.
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `image_io.read_image`.
    """

    def __init__(
        self,
        model: Network,
        metadata: Metadata,
        task: Task | None = None,
        *,
        resize: T.Augmentation | T.Transform,
        image_format: str = "RGB",
        confidence_threshold: float | None = None,
        max_pixels: int = _MAX_PIXELS,
        value_range: ValueRange | None = None,
        config_digest: str = "",
        network: Network | None = None,
    ):
        """Set the parts.

        Args:
            model: Model to predict with.
            metadata: Names and colours of its classes.
            task: Default task; None: the richest that the model has on.
            resize: Augmentation or transform that gives an image the size that the model was trained for.
            image_format: Order of the channels that the model expects, "RGB" or "BGR".
            confidence_threshold: Default threshold, see the class.
            max_pixels: Number of pixels above which results are made smaller and enlarged.
            value_range: Values that become 0 and 255 in images with more than 8 bits.
            config_digest: Digest of the config, part of `fingerprint`.
            network: Network that runs the model, such as `ModelWithTTA`; None: the model itself.

        Raises:
            ConfigError: The classes do not allow the task, or the threshold is not valid.
        """
        self.model = model.eval()
        self._network = self.model if network is None else network.eval()
        self._metadata = metadata
        self._performed = tasks_of_model(model)
        architecture = architecture_of_model(model)
        self._predicts_boxes = architecture is not None and architecture.boxes
        self.tasks = tuple(name for name in possible_tasks(metadata) if name in self._performed)
        self._usual = getattr(model, "inference_settings", None) or InferenceSettings(tasks=self._performed)
        switched_on = next((name for name in self.tasks if name in self._usual.tasks), None)
        self.task = self._checked(task or switched_on, confidence_threshold)
        self.confidence_threshold = confidence_threshold
        self.value_range = value_range
        self._resize = T.AugmentationList([resize])
        self._image_format = image_format
        self._max_pixels = _checked_size(max_pixels, "max_pixels")
        self._config_digest = config_digest

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
        class_names: str | Path | Sequence[str] | None = None,
    ) -> "Self":
        """Build the model of a config file and load its weights.

        Args:
            config_file: File of `configs/`, or the `config.yaml` of a training.
            weights: Checkpoint, see `MODEL.WEIGHTS` in the README; None: that of the config.
            opts: Alternating config keys and values.
            device: Device of the model; None: MODEL.DEVICE in `opts`, else a GPU if available, else the CPU.
            task: "panoptic", "instance", "semantic" or "classification"; None: the richest that the config has on.
            confidence_threshold: Lowest score of a segment or an instance, see the class.
            class_names: Names of the classes in the order of their ids, or a file for `read_class_names`; None: those
                of the data set.

        Raises:
            ConfigError: The config or the class names can't be used, or the model can't perform the task.
            CheckpointError: The weights can't be used.
            DeviceError: The device does not exist.
        """
        cfg = setup_cfg(config_file, opts)
        cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, Path(config_file).parent)
        if weights is not None:
            cfg.MODEL.WEIGHTS = str(weights)
        explicit = device is not None or "MODEL.DEVICE" in opts
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE if device is None else str(device), explicit=explicit)
        return cls.from_cfg(cfg, task, confidence_threshold, class_names)

    @classmethod
    def from_cfg(
        cls,
        cfg: CfgNode,
        task: Task | None = None,
        confidence_threshold: float | None = None,
        class_names: str | Path | Sequence[str] | None = None,
    ) -> "Self":
        """Build the model of a config from `mask2former.setup_cfg` and load MODEL.WEIGHTS; `cfg` is not changed.

        With TEST.AUG.ENABLED, each image passes through the model at several scales and flipped.

        Raises:
            ConfigError: The model can't perform the task or has no augmentation, or the threshold is not valid.
            CheckpointError: MODEL.WEIGHTS can't be used.
        """
        check_augmentation(cfg)
        metadata = predicted_metadata(cfg)
        if class_names is not None:
            names = read_class_names(class_names) if isinstance(class_names, str | Path) else class_names
            metadata = with_class_names(metadata, names, cfg)
        if not cfg.MODEL.WEIGHTS:
            _LOG.warning("MODEL.WEIGHTS is empty: the weights are random, so the results mean nothing")
        if task is not None:
            checked_task(task, confidence_threshold, metadata)
        model = build_model(cfg.clone())
        content = Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        round_weights(model)
        if class_names is None and (classes := FileClasses.of(content)) is not None:
            metadata = classes.describe(metadata, cfg)
        network = ModelWithTTA(cfg, model) if cfg.TEST.AUG.ENABLED else None
        return cls(
            model,
            metadata,
            task,
            resize=T.NoOpTransform() if network and network.views.needs_original else build_test_transform(cfg),
            image_format=cfg.INPUT.FORMAT,
            confidence_threshold=confidence_threshold,
            value_range=configured_range(cfg),
            config_digest=config_digest(cfg, augmented=cfg.TEST.AUG.ENABLED),
            network=network,
        )

    def _checked(self, task: Task | None, threshold: float | None) -> Task:
        return checked_task(task, threshold, self._metadata, self._performed)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def batch_size(self) -> int:
        """Number of images that go through the model at once in calls that name no other."""
        return _GPU_BATCH if self.device.type == "cuda" else 1

    @property
    def default_overlap(self) -> float:
        """Smallest share of its mask that a panoptic segment keeps next to others in calls that name no other."""
        return self._usual.overlap_threshold

    def default_threshold(self, task: Task) -> float:
        """Lowest score of a segment or an instance of a task in calls that name no other."""
        if task == self.task and self.confidence_threshold is not None:
            return self.confidence_threshold
        return _INSTANCE_THRESHOLD if task == "instance" else self._usual.object_mask_threshold

    def classes(self, task: Task | None = None) -> ClassTable:
        """Names and colours of the classes of a task (None: the predictor's), by the ids of its results."""
        return ClassTable.from_metadata(self._metadata, task or self.task)

    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready description of all that a prediction depends on: equal fingerprints give equal results."""
        return {
            "config": self._config_digest,
            "weights": weights_digest(cast(nn.Module, self.model)),
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
        images: Iterable[ImageLike],
        *,
        task: Task | None = ...,
        confidence_threshold: float | None = ...,
        batch_size: int | None = ...,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        task: Task | None = None,
        confidence_threshold: float | None = None,
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict one image or several.

        Images of one size go through the model together. Images of different sizes do not, because padding the smaller
        one to the larger changes results slightly.

        Args:
            images: Path, Pillow image, bytes of a file, open file or pixels (RGB [H, W, 3]; those of a PyTorch tensor
                also [3, H, W]; see `inputs.read_image`). Several: a list, a tuple, an iterator, or pixels with four
                dimensions.
            task: Task of the results; None: the predictor's.
            confidence_threshold: Lowest score of a segment or an instance; None: the predictor's.
            batch_size: Largest number of images at once; None: 4 on a GPU, 1 on a CPU.

        Returns:
            The result, or a list of results in the order of the images.

        Raises:
            ImageReadError: An image can't be read; the message names it.
            ConfigError: The classes do not allow the task, or the threshold or the batch size is not valid.
        """
        task = self._checked(self.task if task is None else task, confidence_threshold)
        batch_size = self.batch_size if batch_size is None else _checked_size(batch_size)
        given, is_one = split(images)
        if is_one:
            return self.result(self.analyze(given[0]), task=task, confidence_threshold=confidence_threshold)
        pixels = [read_numbered(number, image, self.value_range) for number, image in enumerate(given, start=1)]
        results: dict[int, Prediction] = {}
        for batch in _batches_of_one_size(pixels, batch_size):
            for index, analysis in zip(batch, self._analyze([pixels[i] for i in batch]), strict=True):
                results[index] = self.result(analysis, task=task, confidence_threshold=confidence_threshold)
        return [results[i] for i in range(len(pixels))]

    def analyze(self, image: ImageLike) -> Analysis:
        """Run the network on an image, see `__call__`.

        Raises:
            ImageReadError: The image can't be read, or is more than one.
        """
        return self._analyze([read_image(image, self.value_range)])[0]

    @torch.inference_mode()
    def result(
        self,
        analysis: Analysis,
        *,
        task: Task | None = None,
        confidence_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> Prediction:
        """Make a result of an image that was analyzed.

        Args:
            analysis: Output of `analyze`.
            task: Task of the result; None: the predictor's.
            confidence_threshold: Lowest score of a segment or an instance; None: the predictor's.
            overlap_threshold: Smallest share of its mask that a panoptic segment keeps; None: the config's.

        Raises:
            ConfigError: The classes do not allow the task, or a threshold is not valid.
        """
        task = self._checked(self.task if task is None else task, confidence_threshold)
        lowest = self.default_threshold(task) if confidence_threshold is None else float(confidence_threshold)
        if overlap_threshold is not None:
            overlap_threshold = checked_fraction(overlap_threshold, "overlap threshold")
        settings = self._settings(task, lowest, overlap_threshold)
        output = inference.run(analysis.output, analysis.result_size, settings)
        return RESULTS[task].from_output(output, analysis.image, self.classes(task), lowest, self._predicts_boxes)

    def _settings(self, task: Task, lowest: float, overlap: float | None) -> InferenceSettings:
        settings = replace(self._usual, tasks=(task,), semantic_scores=False)
        if task == "panoptic":
            settings = replace(settings, object_mask_threshold=lowest)
        return settings if overlap is None else replace(settings, overlap_threshold=overlap)

    @torch.inference_mode()
    def _analyze(self, images: Sequence[Rgb]) -> list[Analysis]:
        """Run the network on images of one size at once."""
        outputs = _predict_batch(self._network, [self._input(image) for image in images])
        return [
            Analysis(image, output, self._result_size(image)) for image, output in zip(images, outputs, strict=True)
        ]

    def _result_size(self, image: Rgb) -> tuple[int, int]:
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _input(self, image: Rgb) -> dict[str, Any]:
        resized = T.AugInput(image)
        self._resize(resized)
        pixels = resized.image
        if self._image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        height, width = self._result_size(image)
        pixels = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}


def _checked_size(size: int, name: str = "batch size") -> int:
    try:
        number = operator.index(size)
    except TypeError as error:
        raise ConfigError(f"{name} {size!r}: expected a whole number, at least 1") from error
    if number < 1:
        raise ConfigError(f"{name} {size}: expected at least 1")
    return number


def shrunk(image: Rgb, longer_side: int) -> Rgb:
    """An image [H, W, 3] shrunk to at most `longer_side` pixels; the image itself if it is small enough."""
    height, width = image.shape[:2]
    scale = longer_side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _batches_of_one_size(images: Sequence[Rgb], batch_size: int) -> Iterator[list[int]]:
    """Positions of images of one size, at most `batch_size` at once."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(position)
    for positions in sizes.values():
        for start in range(0, len(positions), batch_size):
            yield positions[start : start + batch_size]


def _predict_batch(model: Network, inputs: list[dict[str, Any]]) -> list[RawOutput]:
    """Run the network on a batch; split the batch and retry when memory runs out."""
    try:
        return list(model.predict(inputs))
    except torch.OutOfMemoryError:
        if len(inputs) == 1:
            raise
    middle = len(inputs) // 2
    return _predict_batch(model, inputs[:middle]) + _predict_batch(model, inputs[middle:])
