"""Parallel work on many files, with progress, and its end in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

# Files that a process takes at a time.
_CHUNK = 8
_LONGEST_WAIT = timedelta(days=30)


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


@contextmanager
def uneven_work() -> Generator[None, None, None]:
    """Wait at the end of a block, however long, until all processes of the group have reached it.

    For work without communication, whose time differs between processes. Other communication fails if a process is
    half an hour late. All processes enter the block at about the same time.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    group: Any = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    yield
    dist.barrier(group)
    dist.destroy_process_group(group)


def available_cores() -> int:
    """Number of processor cores that this process may use, at least 1.

    Considers the affinity of the process and, on Linux, the CPU quota of its container.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _control_group_limit("cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores


def available_memory() -> int:
    """Memory of this machine or, on Linux, the memory limit of its container, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _control_group_limit("memory.max")
    return min(memory, int(limit)) if limit.isdigit() else memory


def _control_group_limit(name: str) -> str:
    """Limit of the control group of a container (Linux, version 2); empty or "max" if there is none."""
    file = Path("/sys/fs/cgroup", name)
    return file.read_text().strip() if file.is_file() else ""


def default_workers() -> int:
    """Default number of processes that read files: one per available core, at most 16."""
    return min(16, available_cores())


def report_interval() -> float:
    """Seconds between two reports of progress: few on a terminal, more in a log file, where each adds a line."""
    return 0.2 if sys.stderr.isatty() else 5.0
