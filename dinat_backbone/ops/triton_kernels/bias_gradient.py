# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""The gradient of the bias table, by matrix products and in a fixed order, without atomic additions.

For a given row r of the table, query row y meets key row y + r only, and the columns of a tile of queries and of its
keys form the same pairs in every row. A program therefore sums score gradients over many query rows in place, and
sorts the sums by relative column once, at its end.
"""

import triton
import triton.language as tl

from .geometry import load_vectors, offsets_of, place_in_table, position_offset, window_start


@triton.jit
def _rows_seeing(lowest, highest, length, K: tl.constexpr):
    """First and last query row that attends to a key row `lowest` .. `highest` rows further on."""
    # x - s(x) grows from 0 to K - 1 along a group. A key r further on is in the window if this lag is within
    # -r .. K - 1 - r, which holds for the first queries if r is positive and for the last ones if r is negative.
    first = tl.where(highest >= 0, 0, tl.where(highest >= -(K // 2), -highest, length - K - highest))
    last = tl.where(lowest <= 0, length - 1, tl.where(lowest <= K // 2, length - 1 - lowest, K - 1 - lowest))
    return first, last


@triton.jit
def bias_gradient_kernel(
    query, key, value, bias, gradient, log_sum, mean, partial,
    stride_batch, stride_y, stride_x, stride_head, height, width, heads, dilation, scale,
    groups_per_program, rows_per_program,
    K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    TX: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    LEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the sums of a program for ROWS rows of the table to `partial` [B, programs of axis 0, n, 2k - 1, 2k - 1].

    Grid: query rows in chunks x tiles of TX query columns of all groups; heads x blocks of table rows; batch.
    COLUMNS is at least TX + k - 1, the number of columns of keys to which a tile attends.
    """
    below: tl.constexpr = (K // 2 + ROWS - 1) // ROWS
    blocks: tl.constexpr = below + (K + K // 2 + ROWS - 1) // ROWS
    head, block, batch = tl.program_id(1) // blocks, tl.program_id(1) % blocks, tl.program_id(2).to(tl.int64)
    source, target, numbers, table = offsets_of(
        head, batch, stride_batch, stride_head, height, width, heads, K, D, LEAD
    )
    query, key, value, bias = query + source, key + source, value + source, bias + table
    gradient, log_sum, mean = gradient + target, log_sum + numbers, mean + numbers
    partial += ((batch * tl.num_programs(0) + tl.program_id(0)) * heads + head) * (2 * K - 1) * (2 * K - 1)

    tiles = tl.cdiv(tl.cdiv(width, dilation), TX)
    group_x, x0 = tl.program_id(0) // tiles % dilation, tl.program_id(0) % tiles * TX
    chunk = tl.program_id(0) // (tiles * dilation)
    row_chunks = tl.cdiv(tl.cdiv(height, dilation), rows_per_program)
    first_group, first_row = chunk // row_chunks * groups_per_program, chunk % row_chunks * rows_per_program

    # Blocks start at -(k // 2), so that most queries, those far from a border, use as few blocks as possible.
    lowest = (block - below) * ROWS - K // 2
    length_x = tl.cdiv(width - group_x, dilation)
    query_x = x0 + tl.arange(0, TX)
    valid = query_x < length_x
    index = tl.arange(0, ROWS * COLUMNS)
    relative_y = lowest + index // COLUMNS
    key_x = window_start(x0, length_x, K) + index % COLUMNS
    step_x = key_x[None, :] - window_start(query_x, length_x, K)[:, None]
    relative_x = key_x[None, :] - query_x[:, None]
    in_table = (relative_y > -K) & (relative_y < K)
    inside = (step_x >= 0) & (step_x < K) & in_table[None, :]
    entry = place_in_table(relative_y[None, :], relative_x, K, LEAD)
    biases = tl.load(bias + entry, mask=inside, other=float("-inf"))

    result = tl.zeros([TX, ROWS * COLUMNS], tl.float32)
    x, keys_at_x = query_x * dilation + group_x, key_x * dilation + group_x
    for group_y in range(first_group, tl.minimum(first_group + groups_per_program, dilation)):
        length_y = tl.cdiv(height - group_y, dilation)
        first, last = _rows_seeing(tl.maximum(lowest, 1 - K), tl.minimum(lowest + ROWS, K) - 1, length_y, K)
        first, last = tl.maximum(first, first_row), tl.minimum(last, first_row + rows_per_program - 1)
        for query_y in range(first, last + 1):
            y = query_y * dilation + group_y
            queries = load_vectors(query, position_offset(y, x, stride_y, stride_x, WIDE), valid, D, BLOCK_D)
            offset = position_offset(y, x, width * heads * D, heads * D, WIDE)
            gradients = load_vectors(gradient, offset, valid, D, BLOCK_D)
            sums = tl.load(log_sum + (y * width + x), mask=valid, other=float("inf"))
            means = tl.load(mean + (y * width + x), mask=valid, other=0.0)
            key_y = query_y + relative_y
            step_y = key_y - window_start(query_y, length_y, K)
            attended = (step_y >= 0) & (step_y < K) & (key_x < length_x)
            offset = position_offset(key_y * dilation + group_y, keys_at_x, stride_y, stride_x, WIDE)
            keys = load_vectors(key, offset, attended, D, BLOCK_D)
            values = load_vectors(value, offset, attended, D, BLOCK_D)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale + biases
            weights = tl.where(attended[None, :], tl.exp2(scores - sums[:, None]), 0.0)
            result += weights * (tl.dot(gradients, tl.trans(values), input_precision="ieee") - means[:, None])

    row = lowest + tl.arange(0, ROWS)
    for column in range(0, 2 * K - 1):
        chosen = tl.where(relative_x == column - (K - 1), result, 0.0)
        sums = tl.sum(tl.sum(tl.reshape(chosen, [TX, ROWS, COLUMNS]), 2), 0)
        tl.store(partial + (row + K - 1) * (2 * K - 1) + column, sums, mask=(row > -K) & (row < K))
