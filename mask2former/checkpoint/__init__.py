"""Weights on disk: reading files, comparing names, saving and resuming, downloading."""

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

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "Checkpointer",
    "DownloadError",
    "LoadReport",
    "build_empty_state",
    "fetch",
    "from_transformers",
    "holds_backbone_only",
    "is_url",
    "match",
    "match_backbone",
    "read_checkpoint",
]
