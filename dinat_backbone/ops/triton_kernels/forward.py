# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Forward kernel: a program attends from one tile of queries, of one residue group and head, to the keys around it."""

import triton
import triton.language as tl

from .geometry import (
    keys_of_tile,
    load_vectors,
    members_of_tile,
    offsets_of,
    place_scores,
    position_offset,
    store_vectors,
    tile_of,
)


@triton.jit
def forward_kernel(
    query, key, value, bias, output, log_sum,
    stride_batch, stride_y, stride_x, stride_head, height, width, heads, dilation, scale,
    K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the output [B, H, W, n, D] and, for the backward pass, log2 of the sum of exponentials [B, n, H, W].

    Grid: tiles of all groups, heads, batch. Keys come in blocks of BLOCK from the rectangle that contains all windows
    of the tile; the softmax is accumulated over blocks (Milakov and Gimelshein, arXiv 1805.02867).
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group_y, group_x, length_y, length_x, y0, x0 = tile_of(tl.program_id(0), height, width, dilation, TY, TX)
    if (y0 >= length_y) | (x0 >= length_x):
        return
    source, target, numbers, table = offsets_of(
        head, batch, stride_batch, stride_head, height, width, heads, K, D, LEAD
    )
    query, key, value, bias = query + source, key + source, value + source, bias + table
    output, log_sum = output + target, log_sum + numbers

    query_y, query_x, valid = members_of_tile(y0, x0, length_y, length_x, TY, TX)
    y, x = query_y * dilation + group_y, query_x * dilation + group_x
    queries = load_vectors(query, position_offset(y, x, stride_y, stride_x, WIDE), valid, D, BLOCK_D)

    # Places are computed once; from one row of keys to the next they grow by a constant.
    rows, row, in_columns, key_y, key_x, place = keys_of_tile(
        y0, x0, query_y, query_x, length_y, length_x, K, TY, TX, BLOCK, COLUMNS, LEAD, HAS_BIAS
    )
    growth = 2 * K if HAS_BIAS else 1
    # Finite, so that a block without a key of the window gives exp2(-inf) = 0 and not exp2(-inf + inf).
    largest = tl.full([TY * TX], -1.0e30, tl.float32)
    total = tl.zeros([TY * TX], tl.float32)
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
        larger = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - larger)
        weights = tl.exp2(scores - larger[:, None])
        total = total * shrink + tl.sum(weights, 1)
        result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
        largest = larger
    target = position_offset(y, x, width * heads * D, heads * D, WIDE)
    store_vectors(output, target, valid, result / total[:, None], D, BLOCK_D)
    tl.store(log_sum + (y * width + x), largest + tl.log2(total), mask=valid)
