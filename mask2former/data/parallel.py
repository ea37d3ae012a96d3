"""Many files in several processes, with progress."""

import os
import sys
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

# Files that a process takes at a time.
_CHUNK = 8


@contextmanager
def processes(workers: int) -> Generator[Callable[..., Iterable[Any]], None, None]:
    """A `map` that keeps the order, in so many processes; with one it runs in this."""
    if workers <= 1:
        yield map
        return
    executor = ProcessPoolExecutor(workers)
    try:
        yield partial(executor.map, chunksize=_CHUNK)
    finally:
        executor.shutdown(cancel_futures=True)


def default_workers() -> int:
    """As many processes as this one may use processors, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)


def report_interval() -> float:
    """Seconds between two reports of progress: a log file gets a line for each, a terminal is redrawn."""
    return 0.2 if sys.stderr.isatty() else 5.0
