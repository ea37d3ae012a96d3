# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Backward kernels: gradients of the queries, and of the keys and values; see `bias_gradient` for the bias.

Probabilities are recomputed from the scores and the sums of the forward pass. Every gradient is summed by one program
in a fixed order, without atomic additions, so results are reproducible.
"""

import triton
import triton.language as tl

from .geometry import (
    first_query,
    keys_of_tile,
    last_query,
    load_vectors,
    members_of_tile,
    offsets_of,
    place_by_key,
    place_by_query,
    place_scores,
    position_offset,
    store_vectors,
    tile_of,
    window_start,
)


@triton.jit
def query_gradient_kernel(
    query, key, value, bias, output, gradient, log_sum, mean, query_gradient,
    stride_batch, stride_y, stride_x, stride_head, height, width, heads, dilation, scale, gradient_scale,
    K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the queries, and `mean` [B, n, H, W], sum(output * gradient), for the other kernels.

    The grid and the order of the keys are those of `forward_kernel`.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group_y, group_x, length_y, length_x, y0, x0 = tile_of(tl.program_id(0), height, width, dilation, TY, TX)
    if (y0 >= length_y) | (x0 >= length_x):
        return
    source, target, numbers, table = offsets_of(
        head, batch, stride_batch, stride_head, height, width, heads, K, D, LEAD
    )
    query, key, value, bias = query + source, key + source, value + source, bias + table
    output, gradient, query_gradient = output + target, gradient + target, query_gradient + target
    log_sum, mean = log_sum + numbers, mean + numbers

    query_y, query_x, valid = members_of_tile(y0, x0, length_y, length_x, TY, TX)
    y, x = query_y * dilation + group_y, query_x * dilation + group_x
    queries = load_vectors(query, position_offset(y, x, stride_y, stride_x, WIDE), valid, D, BLOCK_D)
    target = position_offset(y, x, width * heads * D, heads * D, WIDE)
    gradients = load_vectors(gradient, target, valid, D, BLOCK_D)
    outputs = load_vectors(output, target, valid, D, BLOCK_D)
    means = tl.sum(outputs.to(tl.float32) * gradients.to(tl.float32), 1)
    tl.store(mean + (y * width + x), means, mask=valid)
    sums = tl.load(log_sum + (y * width + x), mask=valid, other=float("inf"))

    # Places are computed once; from one row of keys to the next they grow by a constant.
    rows, row, in_columns, key_y, key_x, place = keys_of_tile(
        y0, x0, query_y, query_x, length_y, length_x, K, TY, TX, BLOCK, COLUMNS, LEAD, HAS_BIAS
    )
    growth = 2 * K if HAS_BIAS else 1
    result = tl.zeros([TY * TX, BLOCK_D], tl.float32)
    for start in range(0, rows, BLOCK // COLUMNS):
        offset = position_offset(
            (key_y + start) * dilation + group_y, key_x * dilation + group_x, stride_y, stride_x, WIDE
        )
        inside = (row + start < rows) & in_columns
        keys = load_vectors(key, offset, inside, D, BLOCK_D)
        values = load_vectors(value, offset, inside, D, BLOCK_D)
        products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = place_scores(products, bias, place + start * growth, scale, K, HAS_BIAS)
        weights = tl.exp2(scores - sums[:, None])
        changes = tl.dot(gradients, tl.trans(values), input_precision="ieee")
        changes = weights * (changes - means[:, None])
        result = tl.dot(changes.to(keys.dtype), keys, result, input_precision="ieee")
    store_vectors(query_gradient, target, valid, result * gradient_scale, D, BLOCK_D)


@triton.jit
def key_gradient_kernel(
    query, key, value, bias, gradient, log_sum, mean, key_gradient, value_gradient,
    stride_batch, stride_y, stride_x, stride_head, height, width, heads, dilation, scale, gradient_scale,
    K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a tile of keys and values, from all queries whose windows contain one of them.

    Grid: tiles of all groups, heads, batch. Queries come in blocks of BLOCK from the rectangle of queries that attend
    to a key of the tile, which at a border is larger than a window.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group_y, group_x, length_y, length_x, y0, x0 = tile_of(tl.program_id(0), height, width, dilation, TY, TX)
    if (y0 >= length_y) | (x0 >= length_x):
        return
    source, target, numbers, table = offsets_of(
        head, batch, stride_batch, stride_head, height, width, heads, K, D, LEAD
    )
    query, key, value, bias = query + source, key + source, value + source, bias + table
    gradient, key_gradient, value_gradient = gradient + target, key_gradient + target, value_gradient + target
    log_sum, mean = log_sum + numbers, mean + numbers

    key_y, key_x, valid = members_of_tile(y0, x0, length_y, length_x, TY, TX)
    key_at, key_on = key_y * dilation + group_y, key_x * dilation + group_x
    source = position_offset(key_at, key_on, stride_y, stride_x, WIDE)
    keys = load_vectors(key, source, valid, D, BLOCK_D)
    values = load_vectors(value, source, valid, D, BLOCK_D)

    first_y, first_x = first_query(y0, K), first_query(x0, K)
    rows = last_query(tl.minimum(y0 + TY, length_y) - 1, length_y, K) + 1 - first_y
    columns = last_query(tl.minimum(x0 + TX, length_x) - 1, length_x, K) + 1 - first_x
    index = tl.arange(0, BLOCK)
    row = index // COLUMNS
    query_y = first_y + row
    key_result = tl.zeros([TY * TX, BLOCK_D], tl.float32)
    value_result = tl.zeros([TY * TX, BLOCK_D], tl.float32)
    for left in range(0, columns, COLUMNS):
        query_x = first_x + left + index % COLUMNS
        step_x = key_x[:, None] - window_start(query_x, length_x, K)[None, :]
        key_place = place_by_key(key_y[:, None], step_x, key_x[:, None] - query_x[None, :], K, HAS_BIAS)
        for start in range(0, rows, BLOCK // COLUMNS):
            y, x = (query_y + start) * dilation + group_y, query_x * dilation + group_x
            inside = (row + start < rows) & (query_x < first_x + columns)
            queries = load_vectors(query, position_offset(y, x, stride_y, stride_x, WIDE), inside, D, BLOCK_D)
            offset = position_offset(y, x, width * heads * D, heads * D, WIDE)
            gradients = load_vectors(gradient, offset, inside, D, BLOCK_D)
            # An infinite sum gives probability 0 to queries beyond the end of the rectangle.
            sums = tl.load(log_sum + (y * width + x), mask=inside, other=float("inf"))
            means = tl.load(mean + (y * width + x), mask=inside, other=0.0)
            products = tl.dot(keys, tl.trans(queries), input_precision="ieee")
            place = key_place + place_by_query(query_y + start, length_y, K, LEAD, HAS_BIAS)[None, :]
            scores = place_scores(products, bias, place, scale, K, HAS_BIAS)
            weights = tl.exp2(scores - sums[None, :])
            value_result = tl.dot(weights.to(gradients.dtype), gradients, value_result, input_precision="ieee")
            changes = tl.dot(values, tl.trans(gradients), input_precision="ieee")
            changes = weights * (changes - means[None, :])
            key_result = tl.dot(changes.to(queries.dtype), queries, key_result, input_precision="ieee")
    target = position_offset(key_at, key_on, width * heads * D, heads * D, WIDE)
    store_vectors(key_gradient, target, valid, key_result * gradient_scale, D, BLOCK_D)
    store_vectors(value_gradient, target, valid, value_result, D, BLOCK_D)
