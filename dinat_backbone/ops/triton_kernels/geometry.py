# ty does not understand calls between functions that triton.jit has wrapped.
# ty: ignore[invalid-argument-type]
"""Where queries and keys lie, for the Triton kernels: groups, windows, and the queries that see a key.

Needs the package `triton`, as do the kernels; `triton_backend` imports them when it is called.

Positions of an axis fall into residue groups, position = coordinate * dilation + group. In a group of L positions the
window of coordinate x starts at s(x) = clamp(x - k // 2, 0, L - k) (Hassani and Shi, "Dilated Neighborhood Attention
Transformer", arXiv 2209.15001, section 3.1). s never decreases, so the keys of consecutive queries are consecutive, and
so are the queries whose windows hold a key.
"""

import triton
import triton.language as tl


@triton.jit
def window_start(query, length, K: tl.constexpr):
    """First key of a query's window."""
    return tl.minimum(tl.maximum(query - K // 2, 0), length - K)


@triton.jit
def first_query(key, K: tl.constexpr):
    """First query whose window holds a key: the windows of the first k // 2 queries all start at 0."""
    return tl.where(key < K, 0, key - K // 2)


@triton.jit
def last_query(key, length, K: tl.constexpr):
    """Last query whose window holds a key: the windows of the last k // 2 queries all end at the border."""
    return tl.where(key >= length - K, length - 1, key + K // 2)


@triton.jit
def tile_of(index, height, width, dilation, TY: tl.constexpr, TX: tl.constexpr):
    """Group (row, column), its size, and the first coordinates of a tile, of tiles counted group by group."""
    # Groups may differ in length by one; all get as many tiles as the longest.
    rows = tl.cdiv(tl.cdiv(height, dilation), TY)
    columns = tl.cdiv(tl.cdiv(width, dilation), TX)
    group = index // (rows * columns)
    tile = index % (rows * columns)
    group_y, group_x = group // dilation, group % dilation
    length_y, length_x = tl.cdiv(height - group_y, dilation), tl.cdiv(width - group_x, dilation)
    return group_y, group_x, length_y, length_x, tile // columns * TY, tile % columns * TX


@triton.jit
def position_offset(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Elements from the first position to positions (y, x); 64 bits where a map has 2 ** 31 elements or more."""
    if WIDE:
        y, x = y.to(tl.int64), x.to(tl.int64)
    return y * stride_y + x * stride_x


@triton.jit
def load_vectors(pointer, offset, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load [positions, BLOCK_D] from vectors of D channels, zeros where not `inside` and beyond D."""
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
    """The part of a pair's place that depends on the key's row and on both columns.

    With a bias, a place is an entry of the head's expanded table (see `bias`), of which rows have 2k entries, the last
    one -inf: there lead all columns outside the window. Without, it is the number of rows from the window's start to
    the key. `step_x` is the number of columns from the window's start to the key; `relative_x` from the query.
    """
    inside = (step_x >= 0) & (step_x < K)
    if HAS_BIAS:
        return key_y * (2 * K) + tl.where(inside, relative_x + K - 1, 2 * K - 1)
    return tl.where(inside, key_y, -(1 << 20))


@triton.jit
def place_by_query(query_y, length, K: tl.constexpr, LEAD: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The part of a pair's place that depends on the query's row, to be added to `place_by_key`."""
    # Rows behind the group are computed but not used; they must not lead out of the table.
    query = tl.minimum(query_y, length - 1)
    start = window_start(query, length, K)
    if HAS_BIAS:
        return ((query - start) * ROWS - start + LEAD) * (2 * K)
    return -start


@triton.jit
def place_scores(products, bias, place, scale, K: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Scores in base 2 from products of queries and keys: scaled, with bias, -inf outside the query's window.

    `bias` points to the expanded table of one head, and `scale` is the scores' factor, both times log2(e).
    """
    if HAS_BIAS:
        return products * scale + tl.load(bias + place)
    return tl.where((place >= 0) & (place < K), products * scale, float("-inf"))


@triton.jit
def members_of_tile(y0, x0, length_y, length_x, TY: tl.constexpr, TX: tl.constexpr):
    """Coordinates (y, x) of a tile's positions in their group, and which of them the group has."""
    member = tl.arange(0, TY * TX)
    y, x = y0 + member // TX, x0 + member % TX
    return y, x, (y < length_y) & (x < length_x)


@triton.jit
def keys_of_tile(
    y0,
    x0,
    query_y,
    query_x,
    length_y,
    length_x,
    K: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEAD: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """The rectangle of keys that a tile of queries attends, in blocks of BLOCK keys, COLUMNS in a row.

    Returns:
        The number of rows of the rectangle; for the keys of its first block, the row in it, whether the column is in
        it, and the coordinates (y, x); and the places of all pairs [queries, keys], for `place_scores`.
    """
    first_y, first_x = window_start(y0, length_y, K), window_start(x0, length_x, K)
    rows = window_start(tl.minimum(y0 + TY, length_y) - 1, length_y, K) + K - first_y
    columns = window_start(tl.minimum(x0 + TX, length_x) - 1, length_x, K) + K - first_x
    index = tl.arange(0, BLOCK)
    row, column = index // COLUMNS, index % COLUMNS
    key_y, key_x = first_y + row, first_x + column
    step_x = key_x[None, :] - window_start(query_x, length_x, K)[:, None]
    place = place_by_key(key_y[None, :], step_x, key_x[None, :] - query_x[:, None], K, HAS_BIAS)
    place += place_by_query(query_y, length_y, K, LEAD, BIAS_ROWS, HAS_BIAS)[:, None]
    return rows, row, column < columns, key_y, key_x, place
