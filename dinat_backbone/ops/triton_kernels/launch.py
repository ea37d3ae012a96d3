"""Launches of the Triton kernels on tensors [B, H, W, n, D]."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from .backward import key_gradient_kernel, query_gradient_kernel
from .bias import expand_kernel
from .bias_gradient import bias_gradient_kernel
from .forward import forward_kernel
from .tiles import Launch, Launches, block_channels, divide_up, launches, next_power

_LOG2_E = math.log2(math.e)
# Query rows that a program of the bias's kernel goes through: enough to make up for what it does once at its end.
_BIAS_ROWS = 64
# Entries of the expanded bias that a program writes at a time.
_BIAS_BLOCK = 1024
# Maps of fewer elements are addressed with 32 bits.
_WIDE_FROM = 1 << 31


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when `triton` was imported)."""
    return not isinstance(forward_kernel, triton.JITFunction)


def forward(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and log2 of the sum of exponentials of every query, [B, n, H, W] in float32."""
    query, key, value = _alike(query, key, value)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    batch, height, width, heads, channels = query.shape
    log_sum = query.new_empty(batch, heads, height, width, dtype=torch.float32)
    settings = launches(query.dtype, channels)
    with torch.cuda.device_of(query):
        bias, constants = _prepare(query, rpb, kernel_size, settings)
        maps = query, key, value, bias, output, log_sum
        constants["HAS_BIAS"] = rpb is not None
        _run_tiles(forward_kernel, settings.forward, maps, dilation, (scale * _LOG2_E,), constants)
    return output, log_sum


def backward(
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
    """Gradients of query, key, value and rpb, the last one empty unless it is needed."""
    query, key, value = _alike(query, key, value)
    gradient = gradient.contiguous()
    of_query, of_key, of_value = (torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))
    of_rpb = query.new_empty(0)
    mean = torch.empty_like(log_sum)
    settings = launches(query.dtype, query.shape[-1])
    with torch.cuda.device_of(query):
        bias, constants = _prepare(query, rpb, kernel_size, settings)
        tiled = constants | {"HAS_BIAS": rpb is not None}
        scales = scale * _LOG2_E, scale
        # First, because it writes `mean` for the others.
        maps = query, key, value, bias, output, gradient, log_sum, mean, of_query
        _run_tiles(query_gradient_kernel, settings.query, maps, dilation, scales, tiled)
        maps = query, key, value, bias, gradient, log_sum, mean
        _run_tiles(key_gradient_kernel, settings.key, (*maps, of_key, of_value), dilation, scales, tiled)
        if rpb is not None and bias_needed:
            of_rpb = _bias_gradient(settings.bias, maps, dilation, scales[0], constants).to(rpb.dtype)
    return of_query, of_key, of_value, of_rpb


def _run_tiles(
    kernel: Any,
    launch: Launch,
    maps: tuple[Tensor, ...],
    dilation: int,
    scales: tuple[float, ...],
    constants: dict[str, Any],
) -> None:
    """Run a kernel with one program for each tile of positions, head and map."""
    batch, height, width, heads, _ = maps[0].shape
    rows, columns, window = launch.sides(constants["K"])
    tiles = divide_up(divide_up(height, dilation), rows) * divide_up(divide_up(width, dilation), columns)
    sizes = {"TY": rows, "TX": columns, "BLOCK": max(launch.block, window), "COLUMNS": window}
    settings = {"num_warps": launch.warps, "num_stages": launch.stages}
    run = kernel[dilation * dilation * tiles, heads, batch]
    run(*maps, *_numbers(maps[0], dilation), *scales, **constants, **sizes, **settings)


def _bias_gradient(
    launch: Launch, maps: tuple[Tensor, ...], dilation: int, scale: float, constants: dict[str, Any]
) -> Tensor:
    batch, height, width, heads, _ = maps[0].shape
    kernel_size = constants["K"]
    columns = next_power(launch.tile + kernel_size - 1)
    rows = max(1, launch.block // columns)
    longest = divide_up(height, dilation)
    groups = min(dilation, divide_up(_BIAS_ROWS, longest))
    chunks = divide_up(dilation, groups) * divide_up(longest, _BIAS_ROWS)
    programs = chunks * dilation * divide_up(divide_up(width, dilation), launch.tile)
    half, side = kernel_size // 2, 2 * kernel_size - 1
    blocks = divide_up(half, rows) + divide_up(kernel_size + half, rows)
    partial = maps[0].new_empty(batch, programs, heads, side, side, dtype=torch.float32)
    sizes = {"TX": launch.tile, "COLUMNS": columns, "ROWS": rows}
    settings = {"num_warps": launch.warps, "num_stages": launch.stages}
    run: Any = bias_gradient_kernel[programs, heads * blocks, batch]
    numbers = *_numbers(maps[0], dilation), scale, groups, _BIAS_ROWS
    run(*maps, partial, *numbers, **constants, **sizes, **settings)
    return partial.sum((0, 1))


def _alike(*maps: Tensor) -> tuple[Tensor, ...]:
    """The maps with the same strides and channels next to each other, as parts of one projection have them already."""
    strides = maps[0].stride()
    if strides[-1] == 1 and all(x.stride() == strides for x in maps):
        return maps
    return tuple(x.contiguous() for x in maps)


def _prepare(query: Tensor, rpb: Tensor | None, kernel_size: int, settings: Launches) -> tuple[Tensor, dict[str, Any]]:
    """The expanded bias of all heads (where there is none, memory that isn't read) and all kernels' constants."""
    _, height, width, heads, channels = query.shape
    _, stride_y, stride_x, _, _ = query.stride()
    largest = max(height * stride_y + width * stride_x, height * width * heads * channels)
    lead, rows = settings.bias_rows(kernel_size)
    constants = {"K": kernel_size, "D": channels, "BLOCK_D": block_channels(channels)}
    constants |= {"LEAD": lead, "BIAS_ROWS": rows, "WIDE": largest >= _WIDE_FROM}
    if rpb is None:
        return query.new_empty(1, dtype=torch.float32), constants
    bias = query.new_empty(heads, kernel_size, rows, 2 * kernel_size, dtype=torch.float32)
    run: Any = expand_kernel[heads, kernel_size]
    run(rpb.contiguous(), bias, _LOG2_E, K=kernel_size, LEAD=lead, ROWS=rows, BLOCK=_BIAS_BLOCK)
    return bias, constants


def _numbers(query: Tensor, dilation: int) -> tuple[int, ...]:
    """Strides of batch, rows, columns and heads; the map's height, width and heads; the dilation."""
    return *query.stride()[:4], *query.shape[1:4], dilation
