"""Prediction in two stages: the network looks at an image once, then results are made for any task and threshold."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from mask2former import maskformer_model
from mask2former.data.image_io import to_rgb
from mask2former.prediction.predictor import ImageLike, Predictor
from mask2former.prediction.results import Prediction, Rgb, from_model
from mask2former.tasks import Task, checked_task


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the network says of an image.

    Attributes:
        image: RGB [H, W, 3].
        output: of the network.
        result_size: height and width at which results are made, before they are enlarged to those of the image.
    """

    image: Rgb
    output: maskformer_model.Prediction
    result_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the image and of the network's output, wherever that is."""
        return self.image.nbytes + self.output.logits.nbytes + self.output.masks.nbytes

    def within(self, longer_side: int) -> "Analysis":
        """The same of the image made smaller, so that its longer side is at most so many pixels.

        Results of this are those of the smaller image, made in less time; the network saw the larger one.
        """
        image = shrunk(self.image, longer_side)
        if image is self.image:
            return self
        return replace(self, image=image, result_size=(image.shape[0], image.shape[1]))


def shrunk(image: Rgb, longer_side: int) -> Rgb:
    """An image [H, W, 3], made smaller where its longer side is more than so many pixels."""
    height, width = image.shape[:2]
    scale = longer_side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


class StagedPredictor(Predictor):
    """A `Predictor` of a `MaskFormer` that also predicts in two stages: `predictor(image)` in two calls.

    With a threshold, `result(analyse(image))` is what `predictor(image)` is with the same.
    """

    model: maskformer_model.MaskFormer

    @property
    def default_overlap(self) -> float:
        """Smallest part of its mask that a panoptic segment keeps next to others, where a call does not say."""
        return float(self.model.overlap_threshold)

    @torch.inference_mode()
    def analyse(self, image: ImageLike) -> Analysis:
        """Run the network on an image, see `Predictor.__call__`.

        Raises:
            ImageReadError: it can't be read.
        """
        pixels = to_rgb(image)
        inputs = self._input(pixels)
        return Analysis(pixels, self.model.predict([inputs])[0], (inputs["height"], inputs["width"]))

    @torch.inference_mode()
    def result(
        self,
        analysis: Analysis,
        *,
        task: Task | None = None,
        confidence_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> Prediction:
        """The result of an image that the network has seen.

        Args:
            analysis: what it said.
            task: by default the predictor's.
            confidence_threshold: likewise.
            overlap_threshold: see `panoptic_inference`; by default the config's.

        Raises:
            ConfigError: the classes do not allow the task, or the confidence threshold does not fit.
        """
        task = checked_task(task or self.task, confidence_threshold, self._metadata)
        lowest = self.default_threshold(task) if confidence_threshold is None else confidence_threshold
        with self._switched(task, lowest):
            default_overlap = self.model.overlap_threshold
            if overlap_threshold is not None:
                self.model.overlap_threshold = overlap_threshold
            if task == "instance":
                # Where panoptic is on for the sake of instances, nobody wants a segment: this saves their making.
                self.model.object_mask_threshold = 1.0
            try:
                output = self.model.postprocess(analysis.output, analysis.result_size)
            finally:
                self.model.overlap_threshold = default_overlap
        return from_model(output, analysis.image, task, self.classes(task), lowest)
