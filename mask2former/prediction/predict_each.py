"""Prediction of many images of which some may fail."""

from collections.abc import Callable, Sequence

import cv2

from mask2former.prediction.predictor import Predictor
from mask2former.prediction.results import Prediction, Rgb

# What is applied to each result before it is drawn or written, e.g. to leave segments out.
Refine = Callable[[Prediction], Prediction]

# What one image can fail with while others do not: memory, and what a model or a library makes of unusual pixels.
_ERRORS = (RuntimeError, ValueError, MemoryError, cv2.error)


def predict_each(predictor: Predictor, images: Sequence[Rgb]) -> list[Prediction | str]:
    """Results of images (RGB [H, W, 3]) that go through the model together, or one by one if that fails.

    Returns:
        For each the result, or in words why there is none.
    """
    if not images:
        return []
    try:
        return list(predictor(images, batch_size=len(images)))
    except _ERRORS as error:
        if len(images) == 1:
            return [f"{type(error).__name__}: {error}"]
    return [result for image in images for result in predict_each(predictor, [image])]
