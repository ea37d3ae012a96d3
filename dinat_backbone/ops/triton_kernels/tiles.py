"""Tile sizes and launch settings of the Triton kernels: a table by type and channels, chosen without measuring.

A score costs about a dozen instructions outside the matrix products, whether its key is in the query's window or not,
so tiles are small: 8 x 4 queries compute 288 scores each at k = 11, for 121 that count; 16 x 16 queries would 832.
"""

from dataclasses import dataclass

import torch

# Matrix products of the kernels have at least 16 rows, columns and channels.
_LEAST = 16


@dataclass(frozen=True)
class Launch:
    """A tile of `tile` positions meets `block` others at a time; `warps` and `stages` are Triton's launch settings."""

    tile: int
    block: int
    warps: int
    stages: int

    def sides(self, kernel_size: int) -> tuple[int, int, int]:
        """Rows and columns of the tile that computes least, and the columns of its window, all powers of two."""
        shapes = []
        for shift in range(self.tile.bit_length()):
            rows, columns = self.tile >> shift, 1 << shift
            window = next_power(columns + kernel_size - 1)
            shapes.append(((rows + kernel_size - 1) * window, abs(rows - columns), rows, columns, window))
        return min(shapes)[2:]


@dataclass(frozen=True)
class Launches:
    """Settings of the kernels for forward, the gradients of queries, of keys and values, and of the bias."""

    forward: Launch
    query: Launch
    key: Launch
    bias: Launch

    def bias_rows(self, kernel_size: int) -> tuple[int, int]:
        """Rows of the expanded bias before a window's start, and all of them, enough for the keys of every tile."""
        reach = 0
        for launch in (self.forward, self.query, self.key):
            rows, _, window = launch.sides(kernel_size)
            # A tile's rows, and those that its last block computes in vain.
            reach = max(reach, rows + max(1, launch.block // window))
        return reach, 2 * reach + kernel_size


def next_power(number: int) -> int:
    """The power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def divide_up(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)


def block_channels(channels: int) -> int:
    """Channels that a kernel computes with."""
    return max(_LEAST, next_power(channels))


# Chosen by what the compiler makes of them for compute capability 9.0 (instructions per score in the loops, registers
# spilled, shared memory below the 99 KiB of small devices); not yet by timing.
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
    """Settings for inputs of a type with so many channels a head."""
    wide = block_channels(channels) > 64
    if dtype == torch.float32:
        return _SINGLE_WIDE if wide else _SINGLE
    return _HALF_WIDE if wide else _HALF
