"""Moving much from all processes to the main one, a little at a time."""

import pickle
from collections.abc import Iterable, Iterator
from typing import TypeVar

from detectron2.utils import comm

_T = TypeVar("_T")

# What each process sends at once; the main one holds that much of each.
_BYTES = 4 * 2**20


def gather_in_rounds(items: Iterable[_T], limit: int = _BYTES) -> Iterator[_T]:
    """Send items of all other processes to the main one; every process has to go through the iterator to its end.

    Args:
        items: Objects of this process that can be pickled; those of the main process stay where they are.
        limit: Bytes that a process sends at once (one item at least).

    Yields:
        On the main process the items of the others, in the order of ranks within each round.
    """
    if comm.get_world_size() == 1:
        return
    waiting = iter(()) if comm.is_main_process() else map(pickle.dumps, items)
    more = True
    while more:
        part = _take(waiting, limit)
        for received in comm.gather(part):
            yield from map(pickle.loads, received)
        more = any(comm.all_gather(bool(part)))


def _take(items: Iterator[bytes], limit: int) -> list[bytes]:
    part: list[bytes] = []
    while sum(map(len, part)) < limit:
        item = next(items, None)
        if item is None:
            break
        part.append(item)
    return part
