# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Triton kernels of multi-scale deformable attention; `triton_backend` imports this module when it is called.

A program computes a block of rows, each of which is one head of one query, with all channels of the head: the channels
of a cell lie next to each other, so a warp reads whole cells. All sums are in float32, and all tensors are contiguous.
`levels` has height, width and first position of each level. Heads and channels are constants, so that the compiler
knows which addresses are aligned.
"""

import triton
import triton.language as tl


@triton.jit
def _rows_of_program(
    rows, HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """The rows of a program, their heads, which of them exist, the channels, and offsets and mask of all numbers."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    known = row < rows
    exists = known[:, None] & (channel < CHANNELS)[None, :]
    return row, row % HEADS, known, channel, row[:, None] * CHANNELS + channel[None, :], exists


@triton.jit
def _level(levels, level, image, head, positions, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Height and width of a level, and the offset of its first cell."""
    height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
    return height, width, ((image * positions + tl.load(levels + 3 * level + 2)) * HEADS + head) * CHANNELS


@triton.jit
def _locate(locations, weights, sample, height, width, known):
    """Weights of samples, their top left cells, limited to -2 and the size, and fractions of a cell from there."""
    weight = tl.load(weights + sample, mask=known, other=0.0).to(tl.float32)
    x = tl.load(locations + 2 * sample, mask=known, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=known, other=0.0).to(tl.float32) * height - 0.5
    column, line = tl.floor(x), tl.floor(y)
    fraction_x, fraction_y = x - column, y - line
    # Limited as floats, because an integer can't hold every coordinate.
    column = tl.minimum(tl.maximum(column, -2.0), width.to(tl.float32)).to(tl.int32)
    line = tl.minimum(tl.maximum(line, -2.0), height.to(tl.float32)).to(tl.int32)
    return weight, column, line, fraction_x, fraction_y


@triton.jit
def _corner(
    column, line, x, y, height, width, first, known, channel,
    DOWN: tl.constexpr, RIGHT: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Offsets [rows, channels] of one of the four cells around samples, their mask, and its shares in x and y."""
    column, line = column + RIGHT, line + DOWN
    inside = known & (column >= 0) & (column < width) & (line >= 0) & (line < height)
    offset = first + (line * width + column).to(tl.int64) * (HEADS * CHANNELS)
    exists = inside[:, None] & (channel < CHANNELS)[None, :]
    return offset[:, None] + channel[None, :], exists, (x if RIGHT else 1 - x), (y if DOWN else 1 - y)


@triton.jit
def forward_kernel(
    value, levels, locations, weights, output, rows, queries, positions,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write `output` [rows, CHANNELS]."""
    row, head, known, channel, place, exists = _rows_of_program(rows, HEADS, CHANNELS, BLOCK_ROWS, BLOCK_CHANNELS)
    image = row // (HEADS * queries)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), dtype=tl.float32)
    for level in range(LEVELS):
        height, width, first = _level(levels, level, image, head, positions, HEADS, CHANNELS)
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight, column, line, x, y = _locate(locations, weights, sample, height, width, known)
            for corner in tl.static_range(4):
                offset, inside, share_x, share_y = _corner(
                    column, line, x, y, height, width, first, known, channel, corner // 2, corner % 2, HEADS, CHANNELS
                )
                cell = tl.load(value + offset, mask=inside, other=0.0)
                factor = weight * share_x * share_y
                total += factor[:, None] * cell.to(tl.float32)
    tl.store(output + place, total.to(output.dtype.element_ty), mask=exists)


@triton.jit
def backward_kernel(
    gradient, value, levels, locations, weights, of_value, of_locations, of_weights, rows, queries, positions,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, ADD_TO_VALUE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of locations and weights; with ADD_TO_VALUE, add that of `value` to a float32 tensor.

    The products of the gradient with the four cells around a sample, interpolated like the cells, give the gradient of
    its weight; the slopes of this interpolation give the gradient of its location.
    """
    row, head, known, channel, place, exists = _rows_of_program(rows, HEADS, CHANNELS, BLOCK_ROWS, BLOCK_CHANNELS)
    image = row // (HEADS * queries)
    slope = tl.load(gradient + place, mask=exists, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        height, width, first = _level(levels, level, image, head, positions, HEADS, CHANNELS)
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight, column, line, x, y = _locate(locations, weights, sample, height, width, known)
            of_weight = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            of_x = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            of_y = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            for corner in tl.static_range(4):
                offset, inside, share_x, share_y = _corner(
                    column, line, x, y, height, width, first, known, channel, corner // 2, corner % 2, HEADS, CHANNELS
                )
                cell = tl.load(value + offset, mask=inside, other=0.0).to(tl.float32)
                product = tl.sum(cell * slope, axis=1)
                of_weight += product * share_x * share_y
                of_x += product * share_y * (1.0 if corner % 2 else -1.0)
                of_y += product * share_x * (1.0 if corner // 2 else -1.0)
                if ADD_TO_VALUE:
                    factor = weight * share_x * share_y
                    tl.atomic_add(of_value + offset, factor[:, None] * slope, mask=inside, sem="relaxed")
            tl.store(of_weights + sample, of_weight, mask=known)
            tl.store(of_locations + 2 * sample, of_x * weight * width, mask=known)
            tl.store(of_locations + 2 * sample + 1, of_y * weight * height, mask=known)
