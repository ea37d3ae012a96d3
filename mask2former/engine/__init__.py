"""Training and evaluation of a model, and the start of processes, on top of Detectron2's engine."""

from mask2former.engine.launch import LaunchError, default_processes, launch, under_torchrun
from mask2former.engine.run import DeviceError, available_device, set_up_run
from mask2former.engine.train_loop import NonFiniteLossError, TrainLoop
from mask2former.engine.trainer import Trainer
from mask2former.engine.watch import ProcessLostError

__all__ = [
    "DeviceError",
    "LaunchError",
    "NonFiniteLossError",
    "ProcessLostError",
    "TrainLoop",
    "Trainer",
    "available_device",
    "default_processes",
    "launch",
    "set_up_run",
    "under_torchrun",
]
