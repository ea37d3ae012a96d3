"""Launches of the Triton kernels, with tile sizes and launch settings from a table by type and number of channels.

A score costs about a dozen instructions outside the matrix products, whether or not its key is in the window of the
query, so tiles are small: with k = 11, a tile of 8 x 4 queries computes 288 scores per query, of which 121 count; a
tile of 16 x 16 queries would compute 832.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..reference import Call
from .backward import key_gradient_kernel, query_gradient_kernel
from .bias_gradient import bias_gradient_kernel
from .forward import forward_kernel
from .geometry import expand_kernel

_LOG2_E = math.log2(math.e)
# Matrix products of the kernels have at least 16 rows, columns and channels.
_SMALLEST_BLOCK = 16
# Query rows that a program of the bias gradient sums: enough to outweigh the work at its end.
_BIAS_ROWS = 64
# Entries of the expanded bias that a program writes at a time.
_BIAS_BLOCK = 1024
# Maps of fewer elements are addressed with 32 bits.
WIDE_FROM = 1 << 31


def _next_power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


@dataclass(frozen=True)
class Launch:
    """Tile size and launch settings of a kernel.

    Attributes:
        tile: Number of positions of a tile.
        block: Number of positions that a tile is combined with at a time.
        warps: Triton's `num_warps`.
        stages: Triton's `num_stages`.
    """

    tile: int
    block: int
    warps: int
    stages: int

    def sides(self, kernel_size: int) -> tuple[int, int, int]:
        """Return rows and columns of the tile with the least work and the columns of its window, all powers of two."""
        shapes = []
        for shift in range(self.tile.bit_length()):
            rows, columns = self.tile >> shift, 1 << shift
            window = _next_power(columns + kernel_size - 1)
            shapes.append(((rows + kernel_size - 1) * window, abs(rows - columns), rows, columns, window))
        return min(shapes)[2:]


@dataclass(frozen=True)
class Launches:
    """Settings of the kernels for the output and for the gradients of queries, of keys and values, and of the bias."""

    forward: Launch
    query: Launch
    key: Launch
    bias: Launch

    def lead(self, kernel_size: int) -> int:
        """Return the rows of the expanded bias before the start of a window, enough for the keys of every tile."""
        lead = 0
        for launch in (self.forward, self.query, self.key):
            rows, _, window = launch.sides(kernel_size)
            # The rows of a tile, and those that its last block computes without need.
            lead = max(lead, rows + max(1, launch.block // window))
        return lead


# Chosen by the compiled code for compute capability 9.0 (instructions per score in the loops, spilled registers, shared
# memory below the 99 KiB of small devices), not yet by measured times.
_HALF = Launches(
    forward=Launch(32, 64, 2, 2), query=Launch(32, 64, 2, 2), key=Launch(32, 64, 2, 2), bias=Launch(16, 128, 4, 1)
)
_HALF_WIDE = Launches(
    forward=Launch(64, 64, 4, 2), query=Launch(64, 64, 4, 1), key=Launch(32, 64, 4, 1), bias=Launch(16, 128, 4, 1)
)
_SINGLE = Launches(
    forward=Launch(32, 32, 4, 2), query=Launch(32, 32, 4, 2), key=Launch(32, 32, 4, 2), bias=Launch(16, 128, 4, 1)
)
_SINGLE_WIDE = Launches(
    forward=Launch(32, 32, 8, 1), query=Launch(32, 32, 8, 1), key=Launch(32, 32, 8, 1), bias=Launch(16, 64, 8, 1)
)


def launches(dtype: torch.dtype, channels: int) -> Launches:
    """Return the settings for inputs of a type with `channels` channels per head."""
    wide = channels > 64
    if dtype == torch.float32:
        return _SINGLE_WIDE if wide else _SINGLE
    return _HALF_WIDE if wide else _HALF


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when `triton` was imported)."""
    return not isinstance(forward_kernel, triton.JITFunction)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Compute the output, and log2 of the sum of exponentials of every query, [B, n, H, W] in float32."""
    call = _alike(call)
    output = torch.empty_like(call.query, memory_format=torch.contiguous_format)
    batch, height, width, heads, channels = output.shape
    log_sum = output.new_empty(batch, heads, height, width, dtype=torch.float32)
    settings = launches(output.dtype, channels)
    with torch.cuda.device_of(output):
        bias, constants = _prepare(call, settings)
        maps = *call[:3], bias, output, log_sum
        constants["HAS_BIAS"] = call.rpb is not None
        _run_tiles(forward_kernel, settings.forward, maps, call.dilation, (call.scale * _LOG2_E,), constants)
    return output, log_sum


def backward(
    call: Call, output: Tensor, log_sum: Tensor, gradient: Tensor, bias_needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key, value and rpb; the last one is empty unless it is needed."""
    call, gradient = _alike(call), gradient.contiguous()
    of_query, of_key, of_value = (torch.empty_like(call.query, memory_format=torch.contiguous_format) for _ in range(3))
    of_rpb = output.new_empty(0)
    mean = torch.empty_like(log_sum)
    settings = launches(output.dtype, output.shape[-1])
    with torch.cuda.device_of(output):
        bias, constants = _prepare(call, settings)
        tiled = constants | {"HAS_BIAS": call.rpb is not None}
        scales = call.scale * _LOG2_E, call.scale
        # First, because it writes `mean` for the others.
        maps = *call[:3], bias, output, gradient, log_sum, mean, of_query
        _run_tiles(query_gradient_kernel, settings.query, maps, call.dilation, scales, tiled)
        maps = *call[:3], bias, gradient, log_sum, mean
        _run_tiles(key_gradient_kernel, settings.key, (*maps, of_key, of_value), call.dilation, scales, tiled)
        if call.rpb is not None and bias_needed:
            of_rpb = _bias_gradient(settings.bias, maps, call.dilation, scales[0], constants).to(call.rpb.dtype)
    return of_query, of_key, of_value, of_rpb


def _run_tiles(
    kernel: Any,
    launch: Launch,
    maps: tuple[Tensor, ...],
    dilation: int,
    scales: tuple[float, ...],
    constants: dict[str, Any],
) -> None:
    """Run a kernel with one program for each tile of positions, head and image."""
    batch, height, width, heads, _ = maps[0].shape
    rows, columns, window = launch.sides(constants["K"])
    tiles = _divide_up(_divide_up(height, dilation), rows) * _divide_up(_divide_up(width, dilation), columns)
    sizes = {"TY": rows, "TX": columns, "BLOCK": max(launch.block, window), "COLUMNS": window}
    settings = {"num_warps": launch.warps, "num_stages": launch.stages}
    run = kernel[dilation * dilation * tiles, heads, batch]
    run(*maps, *_numbers(maps[0], dilation), *scales, **constants, **sizes, **settings)


def _bias_gradient(
    launch: Launch, maps: tuple[Tensor, ...], dilation: int, scale: float, constants: dict[str, Any]
) -> Tensor:
    batch, height, width, heads, _ = maps[0].shape
    kernel_size = constants["K"]
    columns = _next_power(launch.tile + kernel_size - 1)
    rows = max(1, launch.block // columns)
    longest = _divide_up(height, dilation)
    groups = min(dilation, _divide_up(_BIAS_ROWS, longest))
    chunks = _divide_up(dilation, groups) * _divide_up(longest, _BIAS_ROWS)
    programs = chunks * dilation * _divide_up(_divide_up(width, dilation), launch.tile)
    half, side = kernel_size // 2, 2 * kernel_size - 1
    blocks = _divide_up(half, rows) + _divide_up(kernel_size + half, rows)
    partial = maps[0].new_empty(batch, programs, heads, side, side, dtype=torch.float32)
    sizes = {"TX": launch.tile, "COLUMNS": columns, "ROWS": rows}
    settings = {"num_warps": launch.warps, "num_stages": launch.stages}
    run: Any = bias_gradient_kernel[programs, heads * blocks, batch]
    numbers = *_numbers(maps[0], dilation), scale, groups, _BIAS_ROWS
    run(*maps, partial, *numbers, **constants, **sizes, **settings)
    return partial.sum((0, 1))


def _alike(call: Call) -> Call:
    """Give query, key and value equal strides with contiguous channels, which parts of one projection have already."""
    maps = call[:3]
    strides = call.query.stride()
    if strides[-1] == 1 and all(x.stride() == strides for x in maps):
        return call
    return Call(*(x.contiguous() for x in maps), *call[3:])


def _prepare(call: Call, settings: Launches) -> tuple[Tensor, dict[str, Any]]:
    """Return the expanded bias of all heads, or memory that is not read, and the constants of all kernels."""
    query, kernel_size = call.query, call.kernel_size
    _, height, width, heads, channels = query.shape
    _, stride_y, stride_x, _, _ = query.stride()
    largest = max(height * stride_y + width * stride_x, height * width * heads * channels)
    lead = settings.lead(kernel_size)
    block_channels = max(_SMALLEST_BLOCK, _next_power(channels))
    constants = {"K": kernel_size, "D": channels, "BLOCK_D": block_channels, "LEAD": lead}
    constants["WIDE"] = largest >= WIDE_FROM
    if call.rpb is None:
        return query.new_empty(1, dtype=torch.float32), constants
    bias = query.new_empty(heads, kernel_size, 2 * lead + kernel_size, 2 * kernel_size, dtype=torch.float32)
    run: Any = expand_kernel[heads, kernel_size]
    run(call.rpb.contiguous(), bias, _LOG2_E, K=kernel_size, LEAD=lead, BLOCK=_BIAS_BLOCK)
    return bias, constants


def _numbers(query: Tensor, dilation: int) -> tuple[int, ...]:
    """Strides of batch, rows, columns and heads; the height, width and heads of the map; the dilation."""
    return *query.stride()[:4], *query.shape[1:4], dilation
