"""Many files in several processes, with progress."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from typing import Any

# Files that a process takes at a time.
_CHUNK = 8


@contextmanager
def processes(workers: int) -> Generator[Callable[..., Iterable[Any]], None, None]:
    """A `map` that keeps the order, in so many processes; with one it runs in this."""
    if workers <= 1:
        yield map
        return
    executor = ProcessPoolExecutor(workers, initializer=_end_with_parent)
    try:
        yield partial(executor.map, chunksize=_CHUNK)
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave interruptions (Ctrl-C reaches all processes) to the parent, and end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for_end_of, args=(parent.sentinel,), daemon=True).start()


def _wait_for_end_of(sentinel: int) -> None:
    connection.wait([sentinel])
    # Not sys.exit(), which ends only this thread.
    os._exit(1)


def default_workers() -> int:
    """As many processes as this one may use processors, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)


def report_interval() -> float:
    """Seconds between two reports of progress: a log file gets a line for each, a terminal is redrawn."""
    return 0.2 if sys.stderr.isatty() else 5.0
