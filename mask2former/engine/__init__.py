"""Training, checkpoints and the start of processes, on top of Detectron2's engine."""

from mask2former.checkpoint.checkpointer import Checkpointer
from mask2former.checkpoint.download import DownloadError, fetch, is_url
from mask2former.checkpoint.names import LoadReport, build_empty_state, holds_backbone_only, match, match_backbone
from mask2former.checkpoint.reading import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    read_checkpoint,
)
from mask2former.checkpoint.transformers_names import from_transformers
from mask2former.engine.device import DeviceError, available_device
from mask2former.engine.launch import LaunchError, launch
from mask2former.engine.run import set_up_run
from mask2former.engine.train_loop import NonFiniteLossError, TrainLoop
from mask2former.engine.trainer import BaseTrainer
from mask2former.utils.errors import report_errors

__all__ = [
    "BaseTrainer",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "Checkpointer",
    "DeviceError",
    "DownloadError",
    "LaunchError",
    "LoadReport",
    "NonFiniteLossError",
    "TrainLoop",
    "available_device",
    "build_empty_state",
    "fetch",
    "from_transformers",
    "holds_backbone_only",
    "is_url",
    "launch",
    "match",
    "match_backbone",
    "read_checkpoint",
    "report_errors",
    "set_up_run",
]
