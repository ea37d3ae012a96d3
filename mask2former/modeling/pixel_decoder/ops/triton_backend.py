"""Multi-scale deformable attention by Triton kernels, for CUDA.

Triton's interpreter (the environment variable TRITON_INTERPRET=1, set before Triton is imported) runs the same kernels
on the CPU, for tests.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import util
from typing import Any

import torch
from torch import Tensor

from .custom_operator import make_operator, pairs
from .gather import value_gradient

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# The oldest devices that Triton makes code for.
_CAPABILITY = (7, 0)
# Numbers in a block of rows x channels; not tuned yet.
_BLOCK = 1024


def why_unavailable(value: Tensor) -> str | None:
    """Say why the kernels can't serve a call with this `value`, or None if they can."""
    if util.find_spec("triton") is None:
        return "Triton is not installed"
    if value.dtype not in _TYPES:
        return f"it computes in float32 and takes {', '.join(map(str, _TYPES))}; value is of {value.dtype}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not value.is_cuda:
        return f"it is for CUDA, and value is on {value.device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(value.device) < _CAPABILITY:
        return f"{value.device} is older than compute capability {'.'.join(map(str, _CAPABILITY))}"
    return None


def triton_forward(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Run the kernel; see `ms_deform_attn`. Differentiable once."""
    sides = [side for shape in spatial_shapes for side in shape]
    return _operator(value, sides, locations, weights)


def _forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from .triton_kernels import forward_kernel

    output = value.new_empty((*locations.shape[:3], value.shape[3]))
    tensors = (value.contiguous(), locations.contiguous(), weights.contiguous())
    _launch(forward_kernel, (tensors[0], _levels(tuple(sides), value.device), *tensors[1:], output), value, locations)
    return output.flatten(2)


def _backward(
    gradient: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_kernels import backward_kernel

    # Atomic additions come in no fixed order, so that the last bits of the sums differ from run to run.
    deterministic = torch.are_deterministic_algorithms_enabled()
    gradient = gradient.contiguous()
    inputs = (gradient, value.contiguous(), _levels(tuple(sides), value.device))
    inputs = (*inputs, locations.contiguous(), weights.contiguous())
    of_value = value.new_zeros(() if deterministic else value.shape, dtype=torch.float32)
    of_locations, of_weights = (x.new_empty(x.shape, dtype=torch.float32) for x in (locations, weights))
    outputs = (of_value, of_locations, of_weights)
    _launch(backward_kernel, (*inputs, *outputs), value, locations, ADD_TO_VALUE=not deterministic)
    if deterministic:
        gradients = gradient.float().view(*locations.shape[:3], value.shape[3])
        of_value = value_gradient(gradients, pairs(sides), locations.float(), weights.float())
    return of_value.to(value.dtype), of_locations.to(locations.dtype), of_weights.to(weights.dtype)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], value: Tensor, locations: Tensor, **options: bool) -> None:
    """Run a kernel over all rows, that is, heads of queries."""
    images, queries, heads, levels, points, _ = locations.shape
    positions, channels = value.shape[1], value.shape[3]
    rows = images * queries * heads
    block_channels = 1 << (channels - 1).bit_length()
    block_rows = max(1, _BLOCK // block_channels)
    if rows == 0:
        return
    # Kernels run on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(value):
        kernel[(-(-rows // block_rows),)](
            *tensors,
            rows,
            queries,
            positions,
            HEADS=heads,
            CHANNELS=channels,
            LEVELS=levels,
            POINTS=points,
            BLOCK_ROWS=block_rows,
            BLOCK_CHANNELS=block_channels,
            **options,
        )


@lru_cache(maxsize=64)
def _levels(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Height, width and first position of each level, [L, 3], on the device; kept, as copying waits for the device."""
    rows, start = [], 0
    for height, width in pairs(sides):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


_operator = make_operator("ms_deform_attn_triton", _forward, _backward)
