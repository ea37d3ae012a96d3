"""Weights on disk: reading files, comparing names, saving and resuming, downloading."""

from dinat_common.download import DownloadError, fetch, is_url
from dinat_common.weights import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    read_checkpoint,
)
from mask2former.checkpoint.checkpointer import AVERAGE_KEY, Checkpointer, of_models
from mask2former.checkpoint.names import (
    LoadReport,
    build_empty_state,
    compare,
    compare_backbone,
    holds_backbone_only,
    is_mmcv_average,
)
from mask2former.checkpoint.openmmlab_names import from_openmmlab, to_openmmlab
from mask2former.checkpoint.published import FileClasses, fitting_models
from mask2former.checkpoint.transformers_names import from_transformers, to_transformers

__all__ = [
    "AVERAGE_KEY",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "Checkpointer",
    "DownloadError",
    "FileClasses",
    "LoadReport",
    "build_empty_state",
    "compare",
    "compare_backbone",
    "fetch",
    "fitting_models",
    "from_openmmlab",
    "from_transformers",
    "holds_backbone_only",
    "is_mmcv_average",
    "is_url",
    "of_models",
    "read_checkpoint",
    "to_openmmlab",
    "to_transformers",
]
