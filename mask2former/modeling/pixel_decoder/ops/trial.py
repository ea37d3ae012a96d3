"""A trial of the Triton kernels on the device at hand, before `auto` relies on them."""

import logging
from functools import cache

import torch
from torch import Tensor

from . import triton_backend
from .reference import reference_forward

_logger = logging.getLogger(__name__)
# Largest difference from plain PyTorch, relative to the largest value: what rounding can make, and no more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_LEVELS = ((5, 7), (10, 13))


# A constant for torch.compile, which must not look into it.
@torch.compiler.assume_constant_result
@cache
def is_reliable(device: torch.device, dtype: torch.dtype, backward: bool) -> bool:
    """Whether the kernels give plain PyTorch's numbers in a small case; if not, one line in the log says why."""
    try:
        difference = _difference(device, dtype, backward)
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
        _logger.warning("Triton deformable attention fails on %s, plain PyTorch is used: %s", device, error)
        return False
    if difference <= _TOLERANCE[dtype]:
        return True
    _logger.warning("Triton deformable attention is off by %g on %s, plain PyTorch is used", difference, device)
    return False


def _difference(device: torch.device, dtype: torch.dtype, backward: bool) -> float:
    """Largest relative difference of outputs, and of the gradients of value and weights if asked.

    Gradients of locations jump between cells, so that rounding alone can change them.
    """
    generator = torch.Generator().manual_seed(0)
    positions, heads, points = sum(height * width for height, width in _LEVELS), 2, 3
    value = torch.randn(1, positions, heads, 16, generator=generator).to(device, dtype)
    locations = torch.rand(1, 11, heads, len(_LEVELS), points, 2, generator=generator).to(device, dtype)
    weights = torch.rand(locations.shape[:-1], generator=generator).to(device, dtype)
    no_autocast = torch.autocast(device.type, enabled=False)
    with no_autocast, torch.inference_mode(False), torch.set_grad_enabled(backward):
        leaves = [value.requires_grad_(backward), weights.requires_grad_(backward)]
        outputs = [
            [forward(value, _LEVELS, locations, weights)]
            for forward in (triton_backend.triton_forward, reference_forward)
        ]
        if backward:
            outputs = [[x, *torch.autograd.grad(x.sum(), leaves)] for (x,) in outputs]
    return max(_relative(a, b) for a, b in zip(*outputs, strict=True))


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    difference = float((a - b).abs().max() / b.abs().max())
    return difference if difference == difference else float("inf")
