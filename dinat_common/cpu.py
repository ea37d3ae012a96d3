"""How maps and tokens are kept in memory, so that a CPU reads and writes as little of it as possible."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

# Tokens at a time, per thread: their hidden channels stay in the caches of a processor.
_TOKENS_AT_ONCE = 1024


def map_tokens(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of single tokens that needs much more memory inside than for its result.

    Without gradients, a CPU processes large maps in parts, so that the intermediate results stay in its caches.

    Args:
        function: Function from tokens [..., C] to the same shape, each independent of the others.
        x: Tokens [..., C].

    Returns:
        Tokens [..., C].
    """
    # A compiler can't trace the number of threads, and plans its memory itself.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
        return function(x)
    at_once = _TOKENS_AT_ONCE * torch.get_num_threads()
    if x[..., 0].numel() <= 4 * at_once:
        return function(x)
    parts = map(function, x.flatten(0, -2).split(at_once))
    first = next(parts)
    result = first.new_empty(x.shape)
    for place, part in zip(result.view(-1, x.shape[-1]).split(at_once), chain([first], parts), strict=True):
        place.copy_(part)
    return result


def channels_first(x: Tensor) -> Tensor:
    """Turn a map [B, H, W, C] into [B, C, H, W]; on a CPU, whose convolutions read both layouts, without a copy."""
    x = x.permute(0, 3, 1, 2)
    return x if x.device.type == "cpu" else x.contiguous()
