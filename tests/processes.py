"""Groups of processes for tests: forks of the test, which are ready at once, connected by gloo."""

import multiprocessing
import os
import traceback

import pytest
import torch.distributed as dist
from detectron2.utils import comm

SECONDS = 60


def _member(rank, size, meeting, local_size, act, reports):
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        comm.create_local_process_group(local_size)
        reports.put((rank, act(rank)))
        comm.synchronize()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise


def start(tmp_path, act, size, local_size):
    """Start processes that call `act(rank)`; returns them and the queue of (rank, what `act` returns)."""
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    context = multiprocessing.get_context("fork")
    reports = context.SimpleQueue()
    meeting = tmp_path / f"meeting{len(list(tmp_path.iterdir()))}"
    processes = [
        context.Process(target=_member, args=(rank, size, meeting, local_size, act, reports)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes, reports


def finish(processes):
    """Exit codes of processes, once all have ended."""
    for process in processes:
        process.join(SECONDS)
        process.kill()
    return [process.exitcode for process in processes]


def together(tmp_path, act, size=3, local_size=3):
    """What `act(rank)` returns in each of several processes, which must end without an error."""
    processes, reports = start(tmp_path, act, size, local_size)
    assert finish(processes) == [0] * size
    return [report for _, report in sorted(reports.get() for _ in processes)]
