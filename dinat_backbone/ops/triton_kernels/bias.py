"""The bias table, expanded so that the kernels need not compare coordinates to find a pair's bias or mask it.

A query that lies c rows after the start of its window (k // 2 except near a border) attends the keys 0 .. k - 1 rows
after that start. For each c, the expanded table has a row for every step from the start of a window to any key that a
tile computes with, from -LEAD on: the row of `rpb` inside the window, -inf outside; and a last column of -inf.
"""

import triton
import triton.language as tl


@triton.jit
def expand_kernel(rpb, bias, factor, K: tl.constexpr, LEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the expanded table [n, k, ROWS, 2k] of `rpb` [n, 2k - 1, 2k - 1] times `factor`.

    Grid: heads, k.
    """
    head, lag = tl.program_id(0), tl.program_id(1)
    rpb += head * (2 * K - 1) * (2 * K - 1)
    bias += (head * K + lag) * (ROWS * 2 * K)
    for start in range(0, ROWS * 2 * K, BLOCK):
        index = start + tl.arange(0, BLOCK)
        step, column = index // (2 * K) - LEAD, index % (2 * K)
        inside = (step >= 0) & (step < K) & (column < 2 * K - 1)
        entry = (step - lag + K - 1) * (2 * K - 1) + column
        value = tl.load(rpb + entry, mask=inside, other=float("-inf")).to(tl.float32)
        tl.store(bias + index, value * factor, mask=index < ROWS * 2 * K)


@triton.jit
def relative_entry(relative_y, relative_x, K: tl.constexpr, LEAD: tl.constexpr, ROWS: tl.constexpr):
    """Place in the expanded table of a key that lies less than k rows and columns from the query."""
    lag = tl.where(relative_y < 0, K - 1, 0)
    return (lag * ROWS + relative_y + lag + LEAD) * (2 * K) + relative_x + K - 1
