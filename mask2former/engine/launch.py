"""Start of a function in one or several processes, by Detectron2's `launch` or under torchrun, on GPUs or CPUs."""

import argparse
import ctypes
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from dinat_common.errors import UserError
from mask2former.engine.watch import ProcessLostError, watched
from mask2former.utils.parallel import available_cores, available_memory

_PR_SET_PDEATHSIG = 1  # constant of Linux's prctl
# Enough for an evaluation with the largest DiNAT, or a training with a small one, and the readers of images.
_MEMORY_OF_A_PROCESS = 3 << 30

Main = Callable[[argparse.Namespace], Any]


class LaunchError(UserError):
    """The options do not describe a set of processes that this machine can start."""


def default_processes(cfg: CfgNode, *, trains: bool) -> int:
    """Number of processes of a run on one machine for which the user chose neither processes nor threads.

    On a CPU, it is the number of available cores. One process per core with one thread each is faster than threads,
    above all on a busy machine, since the threads of a process wait for the slowest one in every operation. There are
    fewer processes if memory is scarce or if they can't share the batch evenly, and one on a GPU or if OMP_NUM_THREADS
    is set.

    Args:
        cfg: Config of the run.
        trains: Whether the run trains, so that the processes share SOLVER.IMS_PER_BATCH.
    """
    if torch.device(cfg.MODEL.DEVICE).type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return 1
    # Detectron2 0.6, which lacks this function, starts several processes on GPUs only.
    if not hasattr(comm, "create_local_process_group"):
        return 1
    most = max(1, min(available_cores(), available_memory() // _MEMORY_OF_A_PROCESS))
    if not trains:
        return most
    # With this key, Detectron2 scales batch and learning rate by the number of processes.
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        return 1
    return max(count for count in range(1, most + 1) if cfg.SOLVER.IMS_PER_BATCH % count == 0)


def under_torchrun() -> bool:
    """Whether the environment describes one of several processes, as `torchrun` and similar launchers set it."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(main: Main, args: argparse.Namespace, *, device: str = "cpu", processes: int = 1) -> Any:
    """Call `main(args)` in every requested process.

    Under `torchrun` the environment describes the processes (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT; without LOCAL_WORLD_SIZE there is one process per machine, or, if `args.num_gpus` is
    larger than one, RANK and WORLD_SIZE count machines). Otherwise `args` does, with Detectron2's options:
    `num_gpus` processes per machine (also on CPUs), `num_machines`, `machine_rank` and `dist_url` ("auto": a free port
    of this machine). NCCL connects GPUs and gloo connects CPUs; processes that share a CPU divide its cores.

    Args:
        main: Function that can be pickled.
        args: Argument of `main`, with the options above.
        device: Device of the computation, "cuda" or "cpu".
        processes: Number of processes if `args.num_gpus` is None and there is one machine; see `default_processes`.

    Returns:
        The return value of `main` if it runs in this process, otherwise None.

    Raises:
        LaunchError: The options contradict each other or require more GPUs than the machine has.
        ProcessLostError: Another process has ended, see `watched`.
        Exception: Exception of `main`, also if it was raised in another process.
    """
    local_size = args.num_gpus
    if local_size is None:
        local_size = processes if args.num_machines == 1 else 1
    by_torchrun = under_torchrun()
    if by_torchrun and "LOCAL_WORLD_SIZE" not in os.environ and local_size > 1:
        # A launcher that starts one process per machine, such as Kubernetes' PyTorch operator.
        by_torchrun = False
        args = _with_machines_of_environment(args)
    if by_torchrun:
        local_size, world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ["WORLD_SIZE"])
        if args.num_machines > 1 or (args.num_gpus or 1) > 1:
            logging.getLogger(__name__).warning("torchrun set the processes: --num-gpus and --num-machines are ignored")
    else:
        world_size = args.num_machines * local_size
        if world_size < 1 or not 0 <= args.machine_rank < args.num_machines:
            raise LaunchError(
                f"--num-gpus {local_size} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
                "expected at least one process, and a rank from 0 to one less than the machines"
            )
        if args.num_machines > 1 and args.dist_url == "auto":
            raise LaunchError("several machines need --dist-url tcp://HOST:PORT, an address of the first machine")
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and local_size > torch.cuda.device_count():
        raise LaunchError(
            f"{local_size} processes need a GPU each, but this machine has {torch.cuda.device_count()} "
            "(MODEL.DEVICE cpu runs them without)"
        )
    if world_size == 1:
        return main(args)
    if by_torchrun:
        _join_torchrun(on_gpu, local_size)
        try:
            return _run(main, args, local_size)
        except Exception:
            # With NCCL, this would wait for processes that wait for this one.
            if not on_gpu:
                dist.destroy_process_group()
            raise
    errors = mp.get_context("spawn").SimpleQueue()
    where = (local_size, args.num_machines, args.machine_rank, args.dist_url)
    try:
        with nullcontext() if on_gpu else _environment_on_cpu(args.num_machines):
            detectron2_launch(_worker, *where, args=(main, args, errors, local_size))
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as failure:
        if not errors.empty():
            raise pickle.loads(errors.get()) from failure  # noqa: S301 - written by our own process
        if isinstance(failure, mp.ProcessRaisedException):
            raise
        rank = args.machine_rank * local_size + failure.error_index
        cause = f"signal {failure.signal_name}" if failure.signal_name else f"exit status {failure.exit_code}"
        hint = "; SIGKILL usually means that memory ran out" if failure.signal_name == "SIGKILL" else ""
        raise ProcessLostError(f"process {rank} (machine {args.machine_rank}) ended with {cause}{hint}") from failure
    return None


@contextmanager
def _environment_on_cpu(num_machines: int) -> Generator[None, None, None]:
    """Environment of processes that compute on the CPU, for those started meanwhile."""
    # Detectron2 connects processes by NCCL whenever they see a GPU.
    changes = {"CUDA_VISIBLE_DEVICES": ""}
    if num_machines == 1 and sys.platform == "linux":
        # By default, gloo needs a network in which the name of the machine can be resolved.
        changes["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _with_machines_of_environment(args: argparse.Namespace) -> argparse.Namespace:
    """Options with the machines that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe."""
    options = argparse.Namespace(**vars(args))
    options.num_machines, options.machine_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if options.num_machines > 1:
        options.dist_url = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return options


def _join_torchrun(on_gpu: bool, local_size: int) -> None:
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()


def _worker(main: Main, args: argparse.Namespace, errors: Any, local_size: int) -> None:
    try:
        _run(main, args, local_size)
    except Exception as error:
        # An error that can't be pickled is reported with the traceback that PyTorch hands over.
        with suppress(pickle.PicklingError, TypeError, AttributeError):
            message = pickle.dumps(error)
            pickle.loads(message)  # noqa: S301 - just written
            errors.put(message)
        # The process stays in its group until the parent ends it, so that others do not fail for a lost connection and
        # hide the reason.
        raise


def _run(main: Main, args: argparse.Namespace, local_size: int) -> Any:
    """Run `main` in a process that belongs to a process group, and leave the group."""
    if sys.platform == "linux":
        # The system ends this process when its parent is killed. Otherwise it would continue to write to a folder where
        # another run may resume. PyTorch asks for SIGINT, which processes started in the background ignore.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if dist.get_backend() == "gloo" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // local_size))
    with watched(local_size):
        result = main(args)
        comm.synchronize()
    # A process group that outlives the interpreter may abort the process.
    dist.destroy_process_group()
    return result
