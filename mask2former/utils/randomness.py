"""Random draws that depend on a key of integers alone, and not on what was drawn before."""

import hashlib
import random
import struct
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (CPU and GPUs) with a key.

    Args:
        key: Integers, for example seed, iteration and rank. Different keys give independent draws.
    """
    of_python, of_numpy, of_torch = _seeds(key)
    random.seed(of_python)
    np.random.seed(of_numpy)
    # torch.manual_seed takes a millisecond where no GPU is in use.
    torch.default_generator.manual_seed(of_torch)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(of_torch)


@contextmanager
def draws_of(*key: int) -> Generator[None, None, None]:
    """Seed the global generators for the CPU with a key, and restore them at the end of the block.

    Args:
        key: Integers, see `seed_generators`.
    """
    of_python, of_numpy, of_torch = _seeds(key)
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.default_generator.manual_seed(of_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


def drawn_seed(*key: int) -> int:
    """A seed of 63 bits that depends on a key; see `seed_generators`."""
    return _seeds(key)[2]


def _seeds(key: tuple[int, ...]) -> tuple[int, int, int]:
    """Seeds for Python, NumPy (32 bits) and PyTorch (63 bits)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=20).digest()
    of_python, of_numpy, of_torch = struct.unpack("<QIQ", digest)
    return of_python, of_numpy, of_torch >> 1
