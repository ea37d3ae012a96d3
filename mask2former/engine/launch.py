"""Starting a function once, or in several processes on one or several machines, with a GPU each or on the CPU."""

import argparse
import ctypes
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from mask2former.engine.device import divide_threads
from mask2former.utils.errors import UserError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
# As Detectron2's launcher: one process may be busy (evaluating, say) that long while the others wait.
_TIMEOUT = timedelta(minutes=30)

Main = Callable[[argparse.Namespace], Any]


class LaunchError(UserError):
    """Options that do not describe a set of processes this machine can start."""


def launch(main: Main, args: argparse.Namespace, *, device: str = "cpu") -> Any:
    """Call `main(args)` in every process asked for.

    Under `torchrun` the environment says which process this one is. Else `args` does, with Detectron2's options:
    `num_gpus` processes per machine (on the CPU so many processes without a GPU), `num_machines`, `machine_rank` and
    `dist_url` ("auto": a free port of this machine). NCCL connects GPUs, gloo CPUs; processes that share a CPU divide
    its threads.

    Args:
        main: a function of a module (it is sent to other processes by name).
        args: given to `main`; has the options above.
        device: what the processes compute on, "cuda" or "cpu".

    Returns:
        What `main` returns, where it runs in this process; else None.

    Raises:
        LaunchError: options that contradict each other or ask for more GPUs than there are.
        Exception: what `main` raised, also where that was in another process.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _run_under_torchrun(main, args, device)
    world_size = args.num_machines * args.num_gpus
    if world_size < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise LaunchError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "expected at least one process, and a rank from 0 to one less than the machines"
        )
    _require_gpus(args.num_gpus, device)
    if world_size == 1:
        return main(args)
    if args.num_machines > 1 and args.dist_url == "auto":
        raise LaunchError("several machines need --dist-url tcp://HOST:PORT, an address of the first machine")
    dist_url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    place = _Place(dist_url, world_size, args.machine_rank * args.num_gpus, 0, args.num_gpus, device)
    if args.num_gpus == 1:
        return _run_here(main, args, place)
    _spawn(main, args, place)
    return None


@dataclass(frozen=True)
class _Place:
    """A process among the others: where they meet, its number among all and on its machine, what it computes on."""

    url: str
    world_size: int
    rank: int
    local_rank: int
    local_size: int
    device: str


def _spawn(main: Main, args: argparse.Namespace, first: _Place) -> None:
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        mp.start_processes(_worker, (main, args, first, errors), nprocs=first.local_size, start_method="spawn")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as failure:
        if errors.empty():
            raise
        raise pickle.loads(errors.get()) from failure  # noqa: S301 - written by our own process


def _worker(local_rank: int, main: Main, args: argparse.Namespace, first: _Place, errors: Any) -> None:
    _die_with_parent()
    try:
        _join(replace(first, rank=first.rank + local_rank, local_rank=local_rank))
        main(args)
        comm.synchronize()
    except Exception as error:
        # And stay in the group: others that fail because this one left would hide the reason. The parent ends them.
        _send(error, errors)
        raise
    _leave()


def _run_under_torchrun(main: Main, args: argparse.Namespace, device: str) -> Any:
    if args.num_machines > 1 or args.num_gpus > 1:
        logging.getLogger(__name__).warning("torchrun set the processes: --num-gpus and --num-machines do not count")
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    place = _Place("env://", *(int(os.environ[name]) for name in names), device)
    if place.world_size == 1:
        return main(args)
    _require_gpus(place.local_size, device)
    _die_with_parent()
    return _run_here(main, args, place)


def _run_here(main: Main, args: argparse.Namespace, place: _Place) -> Any:
    _join(place)
    try:
        result = main(args)
    except Exception:
        # NCCL would wait for processes that wait for this one.
        if dist.get_backend() == "gloo":
            _leave()
        raise
    comm.synchronize()
    _leave()
    return result


def _join(place: _Place) -> None:
    on_gpu = place.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    else:
        divide_threads(place.local_size)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.url,
        world_size=place.world_size,
        rank=place.rank,
        timeout=_TIMEOUT,
    )
    _make_local_group(place)
    comm.synchronize()


def _die_with_parent() -> None:
    """Let the system end this process when the one that started it is killed.

    It would go on, and write to a folder where another run may resume. PyTorch asks for SIGINT, which processes that
    were started in the background ignore.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _make_local_group(place: _Place) -> None:
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(place.local_size)
        return
    # Detectron2 0.6 makes it in its own launcher only. Every process takes part in making every group.
    for first in range(0, place.world_size, place.local_size):
        members = list(range(first, first + place.local_size))
        group = dist.new_group(members)
        if place.rank in members:
            comm._LOCAL_PROCESS_GROUP = group


def _leave() -> None:
    """End the process groups; one that outlives the interpreter may abort the process."""
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _require_gpus(processes: int, device: str) -> None:
    if device.startswith("cuda") and processes > torch.cuda.device_count():
        raise LaunchError(
            f"{processes} processes need a GPU each; this machine has {torch.cuda.device_count()} "
            "(MODEL.DEVICE cpu runs them without)"
        )


def _send(error: Exception, errors: Any) -> None:
    try:
        message = pickle.dumps(error)
        pickle.loads(message)  # noqa: S301 - just written
    except (pickle.PicklingError, TypeError, AttributeError):
        return  # the parent then reports the traceback that PyTorch hands over
    errors.put(message)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
