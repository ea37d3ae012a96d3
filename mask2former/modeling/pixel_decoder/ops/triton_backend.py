"""Multi-scale deformable attention by Triton kernels, for CUDA.

Triton's interpreter (the environment variable TRITON_INTERPRET=1, set before Triton is imported) runs the same kernels
on the CPU, for tests.
"""

import logging
import os
from functools import cache, lru_cache
from importlib import util
from typing import Any

import torch
from torch import Tensor

from . import reference
from .gather import Shapes, make_operator, value_gradient

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The oldest devices that Triton compiles for.
_CAPABILITY = (7, 0)
# Numbers in a block of rows x channels; not tuned yet.
_BLOCK = 1024
# Largest difference from plain PyTorch, relative to the largest value, that rounding can cause.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TRIAL_SHAPES = ((5, 7), (10, 13))
_logger = logging.getLogger(__name__)


def why_not(value: Tensor) -> str | None:
    """Return the reason why the kernels can't serve a call with this `value`, or None if they can."""
    if util.find_spec("triton") is None:
        return "Triton is not installed"
    if value.dtype not in _DTYPES:
        return f"it takes {', '.join(map(str, _DTYPES))}, and value is of type {value.dtype}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not value.is_cuda:
        return f"it is for CUDA, and value is on {value.device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(value.device) < _CAPABILITY:
        return f"{value.device} is older than compute capability {'.'.join(map(str, _CAPABILITY))}"
    return None


def why_not_auto(value: Tensor) -> str | None:
    """Do the same as `why_not`, and try the kernels on the device."""
    return why_not(value) or try_deformable_kernels(value.device, value.dtype, torch.is_grad_enabled())


# A constant for torch.compile, which must not trace into it.
@torch.compiler.assume_constant_result
@cache
def try_deformable_kernels(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    """Compare the kernels with plain PyTorch in a small case; log and return the reason if they can't be relied on."""
    try:
        difference = _difference_from_reference(device, dtype, backward)
        if not difference <= _TOLERANCE[dtype]:  # also if it is not a number
            raise ArithmeticError(f"results are off by {difference:g}")
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise exceptions of any class
        reason = f"Triton deformable attention fails on {device}, plain PyTorch is used: {error}"
        _logger.warning(reason)
        return reason
    return None


def _difference_from_reference(device: torch.device, dtype: torch.dtype, backward: bool) -> float:
    """Largest relative difference of the outputs and, with `backward`, of the gradients of value and weights.

    The gradients of locations jump between cells, so that rounding alone can change them.
    """
    generator = torch.Generator().manual_seed(0)
    positions = sum(height * width for height, width in _TRIAL_SHAPES)
    value = torch.randn(1, positions, 2, 16, generator=generator).to(device, dtype)
    locations = torch.rand(1, 11, 2, len(_TRIAL_SHAPES), 3, 2, generator=generator).to(device, dtype)
    weights = torch.rand(locations.shape[:-1], generator=generator).to(device, dtype)
    no_autocast = torch.autocast(device.type, enabled=False)
    with no_autocast, torch.inference_mode(False), torch.set_grad_enabled(backward):
        leaves = [value.requires_grad_(backward), weights.requires_grad_(backward)]
        outputs = [[f(value, _TRIAL_SHAPES, locations, weights)] for f in (forward, reference.forward)]
        if backward:
            outputs = [[x, *torch.autograd.grad(x.sum(), leaves)] for (x,) in outputs]
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(*outputs, strict=True)]
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max())


def _forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    from .triton_kernels import forward_kernel

    output = value.new_empty((*locations.shape[:3], value.shape[3]))
    inputs = (value.contiguous(), _levels(tuple(shapes), value.device), locations.contiguous(), weights.contiguous())
    _launch(forward_kernel, (*inputs, output), value, locations)
    return output.flatten(2)


def _backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_kernels import backward_kernel

    # Atomic additions come in no fixed order, so that the last bits of the sums differ from run to run.
    deterministic = torch.are_deterministic_algorithms_enabled()
    gradient = gradient.contiguous()
    inputs = (value.contiguous(), _levels(tuple(shapes), value.device), locations.contiguous(), weights.contiguous())
    of_value = value.new_zeros(() if deterministic else value.shape, dtype=torch.float32)
    of_locations, of_weights = (x.new_empty(x.shape, dtype=torch.float32) for x in (locations, weights))
    outputs = (of_value, of_locations, of_weights)
    _launch(backward_kernel, (gradient, *inputs, *outputs), value, locations, ADD_TO_VALUE=not deterministic)
    if deterministic:
        gradients = gradient.float().view(*locations.shape[:3], value.shape[3])
        of_value = value_gradient(gradients, shapes, locations.float(), weights.float())
    return of_value.to(value.dtype), of_locations.to(locations.dtype), of_weights.to(weights.dtype)


forward = make_operator("ms_deform_attn_triton", _forward, _backward)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], value: Tensor, locations: Tensor, **options: bool) -> None:
    """Run a kernel over all rows; a row is one head of one query."""
    images, queries, heads, levels, points, _ = locations.shape
    positions, channels = value.shape[1], value.shape[3]
    rows = images * queries * heads
    block_channels = 1 << (channels - 1).bit_length()
    block_rows = max(1, _BLOCK // block_channels)
    if rows == 0:
        return
    sizes = {"HEADS": heads, "CHANNELS": channels, "LEVELS": levels, "POINTS": points}
    blocks = {"BLOCK_ROWS": block_rows, "BLOCK_CHANNELS": block_channels}
    # Kernels run on the current device, which need not be the device of the tensors.
    with torch.cuda.device_of(value):
        kernel[(-(-rows // block_rows),)](*tensors, rows, queries, positions, **sizes, **blocks, **options)


@lru_cache(maxsize=64)
def _levels(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Height, width and first position of each level, [L, 3], on the device; cached, as a copy waits for the device."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)
