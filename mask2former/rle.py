"""COCO's compressed run-length encoding of masks, of many masks at once.

The format is that of pycocotools' `maskApi.c`: lengths of runs down the columns, beginning with zeros; from the fourth
on the difference to the length two before; in digits of 5 bits, the lowest first, with a sign and a bit for "more".
"""

from itertools import pairwise

import numpy as np
import torch
from hotcoco import mask as mask_util
from numpy.typing import NDArray

# Masks whose changes are looked for together: they stay in a core's cache, and a call's overhead is shared.
_PIXELS_TOGETHER = 1 << 22
# Where more than one in so many words of 8 pixels has a change, as in noise, a library that goes pixel by pixel is
# faster (measured: break-even lies between 1 in 13 and 1 in 100).
_WORDS_A_CHANGE = 32

# A number has n digits if it is, or its complement where it is negative, below the n-th of these.
_LIMITS = 1 << np.arange(4, 60, 5, dtype=np.int64)


def encode_masks(masks: torch.Tensor) -> list[str]:
    """Encode masks as `pycocotools.mask.encode` does; returns the `counts` of each.

    Args:
        masks: [N, H, W] on any device; what is not 0 belongs to a mask. A few at a time are brought to the CPU.
    """
    together = max(1, _PIXELS_TOGETHER // max(1, masks[:1].numel()))
    groups = (group.to(torch.bool).cpu().contiguous().numpy() for group in masks.split(together))
    # Memory for all groups: to ask the system for it again and again takes longer than the rest.
    words = np.empty(-(-masks[:together].numel() // 8), dtype=np.uint64)
    return [counts for group in groups for counts in _encode(group, words)]


def _encode(masks: NDArray[np.bool_], words: NDArray[np.uint64]) -> list[str]:
    words = _mark_changes(masks, words)
    changed = np.flatnonzero(words != 0)
    if len(changed) * _WORDS_A_CHANGE > len(words):
        return [mask_util.encode(mask)["counts"].decode("ascii") for mask in masks]
    # Borders between runs: all changes, and where masks begin and end.
    begin = np.arange(len(masks) + 1) * masks[0].size if len(masks) else np.zeros(1, dtype=np.int64)
    borders = np.concatenate([_positions(words, changed, masks.shape), begin])
    borders.sort()
    first = np.searchsorted(borders, begin)
    lengths = np.diff(borders)
    numbers = lengths.copy()
    numbers[2:] -= lengths[:-2]
    # A mask of fewer runs than three leaves positions that are among the first three of the next.
    whole = (first[:-1, None] + np.arange(3)).ravel()
    whole = whole[whole < len(lengths)]
    numbers[whole] = lengths[whole]
    text, ends = _digits(numbers)
    ends = np.concatenate([[0], ends])[first].tolist()
    return [text[start:end] for start, end in pairwise(ends)]


def _mark_changes(masks: NDArray[np.bool_], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Which pixels [N, H, W] differ from the one before, going down the columns of each mask, as bytes of words.

    Before a mask's first pixel there are zeros. `words` is room for N * H * W bytes.
    """
    # Words, so that the many where nothing changes are passed quickly.
    words = words[: -(-masks.size // 8)]
    words[-1:] = 0
    changed = words.view(np.bool_)[: masks.size].reshape(masks.shape)
    np.logical_xor(masks[:, 1:], masks[:, :-1], out=changed[:, 1:])
    np.logical_xor(masks[:, 0, 1:], masks[:, -1, :-1], out=changed[:, 0, 1:])
    changed[:, 0, 0] = masks[:, 0, 0]
    return words


def _positions(words: NDArray[np.uint64], changed: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Where pixels change, counted down the columns of one mask after the other; unordered."""
    _, height, width = shape
    inside = np.flatnonzero(words[changed].view(np.bool_))
    rows, x = np.divmod(changed[inside >> 3] * 8 + (inside & 7), width)
    mask, y = np.divmod(rows, height)
    return (mask * width + x) * height + y


def _digits(numbers: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
    """The characters of all numbers, and where each number ends in them."""
    count = np.searchsorted(_LIMITS, numbers ^ (numbers >> 63), side="right") + 1
    digits = np.empty((len(numbers), count.max(initial=1)), dtype=np.uint8)
    for place in range(digits.shape[1]):
        digits[:, place] = (numbers >> (5 * place)) & 31
        digits[:, place] += (48 + 32 * (place + 1 < count)).astype(np.uint8)
    text = digits[np.arange(digits.shape[1]) < count[:, None]].tobytes().decode("ascii")
    return text, np.cumsum(count)
