"""A trial of the Triton kernels on the device at hand, before `auto` relies on them."""

import logging
from functools import cache

import torch
from torch import Tensor

from . import triton_backend
from .tiled import TiledNeighborhoodAttention

_logger = logging.getLogger(__name__)
# Largest difference from plain PyTorch, relative to the largest value: what rounding can make, and no more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


# A constant for torch.compile, which must not look into it.
@torch.compiler.assume_constant_result
@cache
def is_reliable(device: torch.device, dtype: torch.dtype, kernel_size: int, channels: int, backward: bool) -> bool:
    """Whether the kernels give plain PyTorch's numbers in a small case; if not, one line in the log says why.

    Compilers for a device that nobody has tried yet, or a driver too old for them, are found here and not in the middle
    of a training.
    """
    try:
        difference = _difference(device, dtype, kernel_size, channels, backward)
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
        _logger.warning("Triton attention kernels fail on %s, plain PyTorch is used: %s", device, error)
        return False
    if difference <= _TOLERANCE[dtype]:
        return True
    _logger.warning("Triton attention kernels are off by %g on %s, plain PyTorch is used", difference, device)
    return False


def _difference(device: torch.device, dtype: torch.dtype, kernel_size: int, channels: int, backward: bool) -> float:
    """Largest relative difference of outputs, and of all gradients if asked."""
    generator = torch.Generator().manual_seed(0)
    heads, dilation, scale = 2, 2, channels**-0.5
    shape = (1, 2 * kernel_size + 5, 2 * kernel_size + 2, heads, channels)
    table = (heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
    leaves = [torch.randn(s, generator=generator).to(device, dtype) for s in (shape, shape, shape, table)]
    gradient = torch.randn(shape, generator=generator).to(device, dtype)
    no_autocast = torch.autocast(device.type, enabled=False)
    with no_autocast, torch.inference_mode(False), torch.set_grad_enabled(backward):
        leaves = [leaf.requires_grad_(backward) for leaf in leaves]
        settings = kernel_size, dilation, scale
        outputs = [
            [triton_backend.triton_forward(*leaves, *settings)[0]],
            [TiledNeighborhoodAttention.apply(*leaves, *settings)],
        ]
        if backward:
            outputs = [[x, *torch.autograd.grad(x, leaves, gradient)] for (x,) in outputs]
    return max(_relative(a, b) for a, b in zip(*outputs, strict=True))


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    difference = float((a - b).abs().max() / b.abs().max())
    return difference if difference == difference else float("inf")
