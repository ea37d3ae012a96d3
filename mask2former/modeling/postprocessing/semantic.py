"""Semantic results."""

import torch
from torch import Tensor

from .strips import MaskSource, Strip, first_largest, infer


def semantic_inference(logits: Tensor, masks: MaskSource) -> Tensor:
    """Sum of class probability times mask probability over the queries (Mask2Former follows MaskFormer, section 3.4).

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.

    Returns:
        [K, H, W].
    """
    return infer(masks, SemanticScores(logits, masks.size))[0]


def semantic_classes(logits: Tensor, masks: MaskSource) -> Tensor:
    """The class with the highest score of `semantic_inference` for each pixel: int64 [H, W]."""
    return infer(masks, SemanticClasses(logits, masks.size))[0]


class SemanticScores:
    """See `semantic_inference`."""

    queries = None

    def __init__(self, logits: Tensor, size: tuple[int, int]) -> None:
        """Start from class logits [Q, K + 1]; `size` is that of the result."""
        self._weights = logits.softmax(-1)[:, :-1].T.contiguous()
        self._result = logits.new_empty((len(self._weights), *size))

    def add(self, strip: Strip) -> None:
        """See `Result`."""
        probabilities = strip.probabilities
        self._result[:, strip.rows] = (self._weights @ probabilities.flatten(1)).view(-1, *probabilities.shape[1:])

    def finish(self) -> Tensor:
        """See `semantic_inference`."""
        return self._result


class SemanticClasses:
    """See `semantic_classes`."""

    queries = None

    def __init__(self, logits: Tensor, size: tuple[int, int]) -> None:
        """Start from class logits [Q, K + 1]; `size` is that of the result."""
        self._weights = logits.softmax(-1)[:, :-1].T.contiguous()
        self._result = torch.empty(size, dtype=torch.int64, device=logits.device)

    def add(self, strip: Strip) -> None:
        """See `Result`."""
        probabilities = strip.probabilities
        classes = first_largest(self._weights @ probabilities.flatten(1))
        self._result[strip.rows] = classes.view(probabilities.shape[1:])

    def finish(self) -> Tensor:
        """See `semantic_classes`."""
        return self._result
