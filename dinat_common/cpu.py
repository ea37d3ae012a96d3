"""How maps and tokens are kept in memory, so that a CPU reads and writes as little of it as possible."""

from collections.abc import Callable

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
    tokens = x.flatten(0, -2)
    first, *rest = tokens.split(at_once)
    part = function(first)
    result = part.new_empty(tokens.shape)
    result[: len(part)] = part
    for start, tokens_of_part in zip(range(at_once, len(tokens), at_once), rest, strict=True):
        result[start : start + len(tokens_of_part)] = function(tokens_of_part)
    return result.view(x.shape)


def channels_first(x: Tensor) -> Tensor:
    """Turn a map [B, H, W, C] into [B, C, H, W]; on a CPU, whose convolutions read both layouts, without a copy."""
    x = x.permute(0, 3, 1, 2)
    return x if x.device.type == "cpu" else x.contiguous()
