"""Which device a run uses."""

import torch


class DeviceError(ValueError):
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
