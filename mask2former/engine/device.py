"""Which device a run uses, and how many threads of it."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from mask2former.utils.errors import UserError


class DeviceError(UserError):
    """A device that was asked for and that this machine does not have."""


def available_device(device: str, *, explicit: bool) -> str:
    """The device to run on: `device`, or "cpu" where that is a GPU by default and there is none.

    Args:
        device: MODEL.DEVICE.
        explicit: whether the user named the device, so that another one would be wrong.

    Raises:
        DeviceError: the user named a GPU and there is none.
    """
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device
    if explicit:
        raise DeviceError(f"MODEL.DEVICE is {device}, but PyTorch finds no GPU here; use MODEL.DEVICE cpu")
    return "cpu"


def divide_threads(processes: int) -> None:
    """Give this process its share of the CPU's threads, unless OMP_NUM_THREADS sets them."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@contextmanager
def reproducible_threads(device: str) -> Generator[None, None, None]:
    """On a CPU, compute with OMP_NUM_THREADS threads, or one where it is not set, whatever number there is otherwise.

    Sums on a CPU are ordered by the number of threads, and results differ in the last digits. With a number that does
    not depend on how many processes share the machine, these all compute what one process alone does.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    # torchrun sets it to 1 where it is not set.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    try:
        yield
    finally:
        torch.set_num_threads(before)
