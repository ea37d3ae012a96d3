import random

import numpy as np
import torch

from mask2former.utils.randomness import drawn_seed, draws_of, seed_generators


def draw():
    return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(1))


def test_a_key_decides_all_draws():
    seed_generators(1, 2)
    first = draw()
    assert draw() != first
    seed_generators(1, 2)
    assert draw() == first
    keys = [(1, 2), (2, 1), (1, 2, 0), (12,), (-1,), ()]
    found = set()
    for key in keys:
        seed_generators(*key)
        found.update(draw())
    assert len(found) == 4 * len(keys)
    assert len({drawn_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= drawn_seed(*key) < 2**63 for key in keys)


def test_draws_in_a_block_leave_those_around_it_alone():
    def uniform():
        return random.random(), np.random.rand(), float(torch.rand(1))

    seed_generators(5)
    expected = uniform(), uniform()
    with draws_of(6):
        of_block = draw()
    seed_generators(5)
    first = uniform()
    with draws_of(6):
        with draws_of(7):
            assert draw() != of_block
        assert draw() == of_block
    assert (first, uniform()) == expected
