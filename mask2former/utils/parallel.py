"""Parallel work on many files, with progress."""

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
    """Ordered parallel `map` in `workers` processes; runs in the calling process if `workers` is 1."""
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
    """Default number of processes: the processors available to this process, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)


def report_interval() -> float:
    """Seconds between two reports of progress: few on a terminal, more in a log file, where each adds a line."""
    return 0.2 if sys.stderr.isatty() else 5.0
