"""Surroundings of a run: its device, threads, logs and random seeds."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from dinat_common.errors import UserError
from dinat_common.files import atomic_write
from mask2former.config import load_extensions
from mask2former.data.datasets import register_custom_datasets
from mask2former.utils.logs import set_up_logs

# Names of PyTorch for the instructions of x86 processors.
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


class DeviceError(UserError):
    """The requested device does not exist on this machine."""


def available_device(device: str, *, explicit: bool) -> str:
    """Return `device`, or "cpu" if `device` is a GPU by default and the machine has none.

    Args:
        device: Value of MODEL.DEVICE.
        explicit: Whether the user named the device, so that another one would be wrong.

    Raises:
        DeviceError: The user named a GPU and the machine has none.
    """
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device
    if explicit:
        raise DeviceError(f"MODEL.DEVICE is {device}, but PyTorch finds no GPU here; use MODEL.DEVICE cpu")
    return "cpu"


def warn_of_emulated_bfloat16(device: str) -> None:
    """Warn if a CPU would compute in bfloat16 without having instructions for it, many times slower than in float32.

    Args:
        device: Device of a training with SOLVER.AMP.ENABLED.
    """
    # Older PyTorch releases do not say what a CPU can do.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    lacking = capabilities.get("architecture") == "x86_64" and not any(capabilities.get(name) for name in _BFLOAT16)
    if torch.device(device).type == "cpu" and lacking:
        logging.getLogger(__name__).warning(
            "This CPU has no bfloat16 instructions, so that SOLVER.AMP.ENABLED makes the training many times slower: "
            "set SOLVER.AMP.ENABLED False"
        )


@contextmanager
def reproducible_threads(device: str) -> Generator[None, None, None]:
    """On a CPU, compute with OMP_NUM_THREADS threads, or with one if the variable is not set.

    The number of threads decides the order of sums on a CPU, and with it the last digits of results. A number that does
    not depend on how many processes share the machine gives the same results in one process and in several.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    # torchrun sets the variable to 1 if it is not set.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_up_run(cfg: CfgNode, command: str) -> None:
    """Prepare a process for a run: backbones, data sets, logs, and random seeds (one per process).

    Opens the logs in OUTPUT_DIR and writes `config.yaml` there.

    Args:
        cfg: Config of the run; paths in DATASETS.CUSTOM are absolute.
        command: Command that started the run, for the log.

    Raises:
        WriteError: OUTPUT_DIR can't be written.
    """
    # A process that another one started has registered nothing yet.
    load_extensions()
    register_custom_datasets(cfg.DATASETS.CUSTOM, "")
    rank = comm.get_rank()
    set_up_logs(("fvcore", "detectron2", "mask2former", "dinat_backbone", "dinat_common"), cfg.OUTPUT_DIR, rank)
    if comm.is_main_process():
        config_file = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with atomic_write(config_file) as file:
            file.write(cfg.dump())
        logging.getLogger(__name__).info(
            "%s\nPyTorch %s, Detectron2 %s, %d process(es) on %s; the full config is in %s",
            command,
            torch.__version__,
            detectron2.__version__,
            comm.get_world_size(),
            cfg.MODEL.DEVICE,
            config_file,
        )
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
