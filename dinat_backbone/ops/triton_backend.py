"""Neighborhood attention on CUDA devices by Triton kernels, forward and backward; see `gpu/` for how they work.

Triton's interpreter (the environment variable TRITON_INTERPRET=1, set before Triton is imported) runs the same kernels
on the CPU, slowly, for tests. Gradients don't change from run to run: no kernel adds in an order that is left open.
"""

from importlib import util
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_KERNEL = 63
_LARGEST_HEAD = 128
# The oldest NVIDIA devices that Triton's matrix products are made for.
_CAPABILITY = (8, 0)


def why_unavailable(query: Tensor, kernel_size: int) -> str | None:
    """Say why the kernels can't serve a call, or None if they can."""
    if query.dtype not in _DTYPES:
        return f"it computes float32, bfloat16 and float16, got {query.dtype}"
    if query.shape[-1] > _LARGEST_HEAD:
        return f"it takes up to {_LARGEST_HEAD} channels a head, got {query.shape[-1]}"
    if kernel_size > _LARGEST_KERNEL:
        return f"it takes kernel sizes up to {_LARGEST_KERNEL}, got {kernel_size}"
    if not _is_installed():
        return "Triton is not installed"
    if query.is_cuda:
        return _why_device_unfit(query.device)
    if query.device.type != "cpu" or not _is_interpreted():
        return f"it computes on CUDA devices, got a tensor on {query.device}"
    if query.dtype == torch.bfloat16:
        return "Triton's interpreter can't multiply bfloat16"
    return None


# Constants for torch.compile, which must not look into them.
@torch.compiler.assume_constant_result
def _is_installed() -> bool:
    return util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _why_device_unfit(device: torch.device) -> str | None:
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _CAPABILITY:
        return f"{device} is older than compute capability {'.'.join(map(str, _CAPABILITY))}"
    return None


@torch.compiler.assume_constant_result
def _is_interpreted() -> bool:
    from .triton_kernels.launch import interpreted

    return interpreted()


@torch.library.custom_op(
    "dinat_backbone::triton_neighborhood_attention_2d",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? rpb, int kernel_size, int dilation, float scale)"
    " -> (Tensor, Tensor)",
)
def triton_forward(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention of [B, H, W, n, D] tensors; see `neighborhood_attention_2d`.

    Returns:
        The output, and what the backward pass needs: base-2 logarithms of the sums of exponentials, [B, n, H, W], in
        float32.
    """
    # Imported here: Triton is optional, and importing it takes a moment.
    from .triton_kernels.launch import forward

    return forward(query, key, value, rpb, kernel_size, dilation, scale)


@torch.library.custom_op(
    "dinat_backbone::triton_neighborhood_attention_2d_backward",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? rpb, Tensor output, Tensor log_sum, Tensor gradient,"
    " int kernel_size, int dilation, float scale, bool bias_needed) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    gradient: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
    bias_needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .triton_kernels.launch import backward

    return backward(query, key, value, rpb, output, log_sum, gradient, kernel_size, dilation, scale, bias_needed)


@triton_forward.register_fake
def _(query: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    batch, height, width, heads, _ = query.shape
    log_sum = query.new_empty((batch, heads, height, width), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), log_sum


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    maps = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    return *maps, query.new_empty(0) if rpb is None or not rest[-1] else torch.empty_like(rpb)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, rpb, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, rpb, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _of_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    bias_needed = ctx.needs_input_grad[3]
    *of_maps, of_bias = _backward(*ctx.saved_tensors, gradient, *ctx.settings, bias_needed)
    return *of_maps, of_bias if bias_needed else None, None, None, None


triton_forward.register_autograd(_differentiate, setup_context=_save)
