# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Where queries, keys and their biases lie, for the Triton kernels; needs the package `triton`, as they do.

Positions of an axis fall into residue groups, position = coordinate * dilation + group. In a group of L positions the
window of coordinate x starts at s(x) = clamp(x - k // 2, 0, L - k) (Hassani and Shi, "Dilated Neighborhood Attention
Transformer", arXiv 2209.15001, section 3.1). s never decreases, so the keys of consecutive queries are consecutive, and
so are the queries whose windows contain a key.

The bias table is expanded so that the kernels need no comparison of coordinates to find the bias of a pair or to mask
it. A query that lies c rows after the start of its window (k // 2 except near a border) attends to the keys 0 .. k - 1
rows after that start. For each c, the expanded table has 2 * LEAD + k rows, one for every step from the start of a
window to any key that a tile computes with, from -LEAD on: the row of `rpb` inside the window, -inf outside; and an
additional last column of -inf.

Constants of the kernels:
    K: kernel size; D: channels of a head; BLOCK_D: the power of two, at least 16, that is computed with
    TY, TX: rows and columns of a tile; BLOCK: positions that a tile is combined with at a time, COLUMNS in a row
    LEAD: rows of the expanded bias before the start of a window; HAS_BIAS: whether the call has a bias
    WIDE: whether offsets need 64 bits
"""

import triton
import triton.language as tl


@triton.jit
def expand_kernel(rpb, bias, factor, K: tl.constexpr, LEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Write the expanded table [n, k, 2 * LEAD + k, 2k] of `rpb` [n, 2k - 1, 2k - 1] times `factor`.

    Grid: heads, k.
    """
    rows: tl.constexpr = 2 * LEAD + K
    head, lag = tl.program_id(0), tl.program_id(1)
    rpb += head * (2 * K - 1) * (2 * K - 1)
    bias += (head * K + lag) * (rows * 2 * K)
    for start in range(0, rows * 2 * K, BLOCK):
        index = start + tl.arange(0, BLOCK)
        step, column = index // (2 * K) - LEAD, index % (2 * K)
        inside = (step >= 0) & (step < K) & (column < 2 * K - 1)
        entry = (step - lag + K - 1) * (2 * K - 1) + column
        value = tl.load(rpb + entry, mask=inside, other=float("-inf")).to(tl.float32)
        tl.store(bias + index, value * factor, mask=index < rows * 2 * K)


@triton.jit
def offsets_of(
    head, batch, stride_batch, stride_head, height, width, heads,
    K: tl.constexpr, D: tl.constexpr, LEAD: tl.constexpr,
):  # fmt: skip
    """Offsets of a head of an image.

    Returns:
        The offsets in the inputs, in contiguous maps [B, H, W, n, D] and in numbers per query [B, n, H, W], and that of
        the head in the expanded bias.
    """
    inputs = batch * stride_batch + head * stride_head
    outputs = (batch * height * width * heads + head) * D
    return inputs, outputs, (batch * heads + head) * height * width, head * (K * (2 * LEAD + K) * 2 * K)


@triton.jit
def window_start(query, length, K: tl.constexpr):
    """First key of the window of a query."""
    return tl.minimum(tl.maximum(query - K // 2, 0), length - K)


@triton.jit
def first_query(key, K: tl.constexpr):
    """First query whose window contains a key; the windows of the first k // 2 queries all start at 0."""
    return tl.where(key < K, 0, key - K // 2)


@triton.jit
def last_query(key, length, K: tl.constexpr):
    """Last query whose window contains a key; the windows of the last k // 2 queries all end at the border."""
    return tl.where(key >= length - K, length - 1, key + K // 2)


@triton.jit
def tile_of(index, height, width, dilation, TY: tl.constexpr, TX: tl.constexpr):
    """Group (row, column), size of the group, and first coordinates of a tile; tiles are counted group by group."""
    # The lengths of groups may differ by one; all groups get as many tiles as the longest.
    rows = tl.cdiv(tl.cdiv(height, dilation), TY)
    columns = tl.cdiv(tl.cdiv(width, dilation), TX)
    group = index // (rows * columns)
    tile = index % (rows * columns)
    group_y, group_x = group // dilation, group % dilation
    length_y, length_x = tl.cdiv(height - group_y, dilation), tl.cdiv(width - group_x, dilation)
    return group_y, group_x, length_y, length_x, tile // columns * TY, tile % columns * TX


@triton.jit
def position_offset(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Offset of the positions (y, x) in elements; computed in 64 bits for maps of 2 ** 31 elements or more."""
    if WIDE:
        y, x = y.to(tl.int64), x.to(tl.int64)
    return y * stride_y + x * stride_x


@triton.jit
def load_vectors(pointer, offset, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load [positions, BLOCK_D] from vectors of D channels, with zeros for positions not `inside` and beyond D."""
    channel = tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)
    return tl.load(pointer + offset[:, None] + channel, mask=mask, other=0.0)


@triton.jit
def store_vectors(pointer, offset, inside, vectors, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store [positions, BLOCK_D], rounded to the type of the memory; the opposite of `load_vectors`."""
    channel = tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)
    tl.store(pointer + offset[:, None] + channel, vectors.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def place_by_key(key_y, step_x, relative_x, K: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The part of the place of a pair that depends on the row of the key and on both columns.

    With a bias, a place is an entry of the expanded table of the head, whose rows have 2k entries; columns outside the
    window lead to the last entry, which is -inf. Without a bias, it is the number of rows from the start of the window
    to the key. `step_x` is the number of columns from the start of the window to the key, `relative_x` from the query.
    """
    inside = (step_x >= 0) & (step_x < K)
    if HAS_BIAS:
        return key_y * (2 * K) + tl.where(inside, relative_x + K - 1, 2 * K - 1)
    return tl.where(inside, key_y, -(1 << 20))


@triton.jit
def place_by_query(query_y, length, K: tl.constexpr, LEAD: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The part of the place of a pair that depends on the row of the query, to be added to `place_by_key`."""
    # Rows beyond the end of the group are computed but not used; they must not lead out of the table.
    query = tl.minimum(query_y, length - 1)
    start = window_start(query, length, K)
    if HAS_BIAS:
        return ((query - start) * (2 * LEAD + K) - start + LEAD) * (2 * K)
    return -start


@triton.jit
def place_in_table(relative_y, relative_x, K: tl.constexpr, LEAD: tl.constexpr):
    """Place in the expanded table of a key that lies less than k rows and columns from the query."""
    lag = tl.where(relative_y < 0, K - 1, 0)
    return (lag * (2 * LEAD + K) + relative_y + lag + LEAD) * (2 * K) + relative_x + K - 1


@triton.jit
def place_scores(products, bias, place, scale, K: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Scores in base 2 from products of queries and keys: scaled, with bias, and -inf outside the window of the query.

    `bias` points to the expanded table of one head, and `scale` is the factor of the scores, both times log2(e).
    """
    if HAS_BIAS:
        return products * scale + tl.load(bias + place)
    return tl.where((place >= 0) & (place < K), products * scale, float("-inf"))


@triton.jit
def members_of_tile(y0, x0, length_y, length_x, TY: tl.constexpr, TX: tl.constexpr):
    """Coordinates (y, x) of the positions of a tile in their group, and whether they exist."""
    member = tl.arange(0, TY * TX)
    y, x = y0 + member // TX, x0 + member % TX
    return y, x, (y < length_y) & (x < length_x)


@triton.jit
def keys_of_tile(
    y0, x0, query_y, query_x, length_y, length_x, K: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The rectangle of keys to which a tile of queries attends, in blocks of BLOCK keys, COLUMNS in a row.

    Returns:
        The number of rows of the rectangle; for the keys of its first block, the row in the rectangle, whether the
        column is inside it, and the coordinates (y, x); and the places of all pairs [queries, keys].
    """
    first_y, first_x = window_start(y0, length_y, K), window_start(x0, length_x, K)
    rows = window_start(tl.minimum(y0 + TY, length_y) - 1, length_y, K) + K - first_y
    columns = window_start(tl.minimum(x0 + TX, length_x) - 1, length_x, K) + K - first_x
    index = tl.arange(0, BLOCK)
    row, column = index // COLUMNS, index % COLUMNS
    key_y, key_x = first_y + row, first_x + column
    step_x = key_x[None, :] - window_start(query_x, length_x, K)[:, None]
    place = place_by_key(key_y[None, :], step_x, key_x[None, :] - query_x[:, None], K, HAS_BIAS)
    place += place_by_query(query_y, length_y, K, LEAD, HAS_BIAS)[:, None]
    return rows, row, column < columns, key_y, key_x, place
