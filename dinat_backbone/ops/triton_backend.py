"""Neighborhood attention on CUDA devices by Triton kernels, forward and backward; see `triton_kernels/launch.py`.

Triton's interpreter (the environment variable TRITON_INTERPRET=1, set before Triton is imported) runs the same kernels
on the CPU, slowly, for tests. All sums are computed in a fixed order, so results and gradients are reproducible.
"""

import logging
from functools import cache
from importlib import util
from typing import Any

import torch
from torch import Tensor

from . import tiled
from .reference import Call, make_operator, why_no_dropout

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_KERNEL = 63
_LARGEST_HEAD = 128
# The oldest NVIDIA devices that support Triton's matrix products.
_CAPABILITY = (8, 0)
# Largest difference from plain PyTorch, relative to the largest value, that rounding can cause.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_logger = logging.getLogger(__name__)


def why_not(call: Call) -> str | None:
    """Return the reason why the kernels can't serve a call, or None if they can."""
    query = call.query
    if query.dtype not in _DTYPES:
        return f"it computes float32, bfloat16 and float16, got {query.dtype}"
    if query.shape[-1] > _LARGEST_HEAD:
        return f"it takes up to {_LARGEST_HEAD} channels per head, got {query.shape[-1]}"
    if call.kernel_size > _LARGEST_KERNEL:
        return f"it takes kernel sizes up to {_LARGEST_KERNEL}, got {call.kernel_size}"
    return why_no_dropout(call) or _why_unusable(query.device, query.dtype)


def why_not_auto(call: Call) -> str | None:
    """Do the same as `why_not`, and try the kernels on the device."""
    query = call.query
    case = query.device, query.dtype, call.kernel_size, query.shape[-1], torch.is_grad_enabled()
    return why_not(call) or try_attention_kernels(*case)


# A constant for torch.compile, which must not trace into it.
@torch.compiler.assume_constant_result
def _why_unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why Triton can't run on this machine and device."""
    if util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < _CAPABILITY:
            return f"{device} is older than compute capability {'.'.join(map(str, _CAPABILITY))}"
        return None
    from .triton_kernels.launch import interpreted

    if device.type != "cpu" or not interpreted():
        return f"it computes on CUDA devices, got a tensor on {device}"
    return "Triton's interpreter can't multiply bfloat16" if dtype == torch.bfloat16 else None


@torch.compiler.assume_constant_result
@cache
def try_attention_kernels(
    device: torch.device, dtype: torch.dtype, kernel_size: int, channels: int, backward: bool
) -> str | None:
    """Compare the kernels with plain PyTorch in a small case; log and return the reason if they can't be relied on.

    The trial detects compilers that do not support a device yet, and drivers that are too old for them, before a
    training depends on them.
    """
    try:
        difference = _difference_from_tiled(device, dtype, kernel_size, channels, backward)
        if not difference <= _TOLERANCE[dtype]:  # also if it is not a number
            raise ArithmeticError(f"results are off by {difference:g}")
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise exceptions of any class
        reason = f"Triton attention kernels fail on {device}, plain PyTorch is used: {error}"
        _logger.warning(reason)
        return reason
    return None


def _difference_from_tiled(
    device: torch.device, dtype: torch.dtype, kernel_size: int, channels: int, backward: bool
) -> float:
    """Largest relative difference of the outputs and, with `backward`, of all gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2 * kernel_size + 5, 2 * kernel_size + 2, 2, channels)
    table = (2, 2 * kernel_size - 1, 2 * kernel_size - 1)
    leaves = [torch.randn(size, generator=generator).to(device, dtype) for size in (shape, shape, shape, table)]
    gradient = torch.randn(shape, generator=generator).to(device, dtype)
    no_autocast = torch.autocast(device.type, enabled=False)
    with no_autocast, torch.inference_mode(False), torch.set_grad_enabled(backward):
        query, key, value, rpb = leaves = [leaf.requires_grad_(backward) for leaf in leaves]
        call = Call(query, key, value, rpb, kernel_size, 2, channels**-0.5)
        outputs = [[forward(call)], [tiled.forward(call)]]
        if backward:
            outputs = [[x, *torch.autograd.grad(x, leaves, gradient)] for (x,) in outputs]
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(*outputs, strict=True)]
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max())


def _empty_sums(query: Tensor, _keep: bool) -> Tensor:
    """Memory for the base-2 logarithms of the sums of exponentials, [B, n, H, W]."""
    batch, height, width, heads, _ = query.shape
    return query.new_empty((batch, heads, height, width), dtype=torch.float32)


def _forward(call: Call, _keep: bool) -> tuple[Tensor, Tensor]:
    # Imported here because Triton is optional and slow to import.
    from .triton_kernels import launch

    return launch.forward(call)


def _backward(call: Call, *rest: Any) -> tuple[Tensor, ...]:
    from .triton_kernels import launch

    return launch.backward(call, *rest)


forward = make_operator(
    "triton_neighborhood_attention_2d", _forward, _backward, empty_sums=_empty_sums, keep_output=True
)
