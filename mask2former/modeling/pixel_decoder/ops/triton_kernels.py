# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Triton kernels of multi-scale deformable attention; only `triton_backend` imports this module, when it is called.

A program takes a block of rows, each one head of one query, with all channels of the head: the channels of a cell lie
side by side, so a warp reads whole cells. All sums are in float32.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(locations, sample, height, width, known):
    """Top left cells of samples, -2 or the size where that lies further outside, and fractions of a cell from there."""
    x = tl.load(locations + 2 * sample, mask=known, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=known, other=0.0).to(tl.float32) * height - 0.5
    column, row = tl.floor(x), tl.floor(y)
    fraction_x, fraction_y = x - column, y - row
    # Limited as floats: an integer can't hold every coordinate.
    column = tl.minimum(tl.maximum(column, -2.0), width.to(tl.float32)).to(tl.int32)
    row = tl.minimum(tl.maximum(row, -2.0), height.to(tl.float32)).to(tl.int32)
    return column, row, fraction_x, fraction_y


@triton.jit
def _cell(column, row, height, width, first, cell_stride, channel, known):
    """Offsets [rows, channels] of cells, and which of them exist."""
    inside = known & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    offset = first + (row * width + column).to(tl.int64) * cell_stride
    return offset[:, None] + channel[None, :], inside


@triton.jit
def forward_kernel(
    value,
    levels,
    locations,
    weights,
    output,
    rows,
    queries,
    positions,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write `output` [rows, CHANNELS] from contiguous tensors; `levels` has height, width and first position of each.

    Heads and channels are known to the compiler, so that it can tell which addresses are aligned.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    known, has_channel = row < rows, channel < CHANNELS
    image, head = row // (HEADS * queries), row % HEADS
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), dtype=tl.float32)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        first = ((image * positions + tl.load(levels + 3 * level + 2)) * HEADS + head) * CHANNELS
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=known, other=0.0).to(tl.float32)
            column, line, x, y = _locate(locations, sample, height, width, known)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                offset, inside = _cell(
                    column + right, line + down, height, width, first, HEADS * CHANNELS, channel, known
                )
                cell = tl.load(value + offset, mask=inside[:, None] & has_channel[None, :], other=0.0)
                factor = weight * (x if right else 1 - x) * (y if down else 1 - y)
                total += factor[:, None] * cell.to(tl.float32)
    place = row[:, None] * CHANNELS + channel[None, :]
    tl.store(output + place, total.to(output.dtype.element_ty), mask=known[:, None] & has_channel[None, :])


@triton.jit
def backward_kernel(
    gradient,
    value,
    levels,
    locations,
    weights,
    of_value,
    of_locations,
    of_weights,
    rows,
    queries,
    positions,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    ADD_TO_VALUE: tl.constexpr,
):
    """Write the gradients of locations and weights; add that of `value` to a float32 tensor, atomically, if asked to.

    The products of the gradient with the four cells around a sample, interpolated like the cells, are the gradient of
    its weight; the slopes of this interpolation are those of its location.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    known, has_channel = row < rows, channel < CHANNELS
    image, head = row // (HEADS * queries), row % HEADS
    place = row[:, None] * CHANNELS + channel[None, :]
    slope = tl.load(gradient + place, mask=known[:, None] & has_channel[None, :], other=0.0).to(tl.float32)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        first = ((image * positions + tl.load(levels + 3 * level + 2)) * HEADS + head) * CHANNELS
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=known, other=0.0).to(tl.float32)
            column, line, x, y = _locate(locations, sample, height, width, known)
            of_weight = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            of_x = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            of_y = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                offset, inside = _cell(
                    column + right, line + down, height, width, first, HEADS * CHANNELS, channel, known
                )
                exists = inside[:, None] & has_channel[None, :]
                cell = tl.load(value + offset, mask=exists, other=0.0).to(tl.float32)
                product = tl.sum(cell * slope, axis=1)
                share_x, share_y = (x if right else 1 - x), (y if down else 1 - y)
                of_weight += product * share_x * share_y
                of_x += product * share_y * (1.0 if right else -1.0)
                of_y += product * share_x * (1.0 if down else -1.0)
                if ADD_TO_VALUE:
                    factor = weight * share_x * share_y
                    tl.atomic_add(of_value + offset, factor[:, None] * slope, mask=exists, sem="relaxed")
            tl.store(of_weights + sample, of_weight, mask=known)
            tl.store(of_locations + 2 * sample, of_x * weight * width, mask=known)
            tl.store(of_locations + 2 * sample + 1, of_y * weight * height, mask=known)
