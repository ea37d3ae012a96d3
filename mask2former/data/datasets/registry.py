"""Where data sets are looked up: names in Detectron2's catalogs, files under DETECTRON2_DATASETS.

The variable is read when a data set is used, never when it is registered, so that it can be set at any time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask2former.config import ConfigError
from mask2former.utils.errors import UserError

DatasetDict = dict[str, Any]

_ROOT_VARIABLE = "DETECTRON2_DATASETS"
_DEFAULT_ROOT = "datasets"


class MissingDatasetError(UserError, FileNotFoundError):
    """Files of a data set are not where they are expected; the message says where that is and where to get them.

    Attributes:
        paths: the files and folders, where they are known.
        source: where to get them.
    """

    def __init__(self, message: str, paths: Sequence[str] = (), source: str = ""):
        super().__init__(message)
        self.paths = paths
        self.source = source


class AnnotationError(UserError):
    """Annotations that are damaged, or don't fit their images or classes; the message names the file."""


class DatasetMetadata(Metadata):
    """Detectron2's metadata of a data set, with path entries that follow DETECTRON2_DATASETS.

    A path entry (`json_file`, `image_root`, ...) is a string like in Detectron2's own metadata, put together anew
    whenever it is read.
    """

    def __init__(self, paths: Mapping[str, str | Path] = MappingProxyType({}), **entries: Any):
        super().__init__(**entries)
        # Past __setattr__, which would look the name up first.
        self.__dict__["_paths"] = dict(paths)

    def __getattr__(self, key: str) -> Any:
        paths = self.__dict__.get("_paths", {})
        if key in paths:
            return str(datasets_root() / paths[key])
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All entries, paths included."""
        entries = super().as_dict()
        return {**{key: getattr(self, key) for key in entries.pop("_paths", {})}, **entries}


def datasets_root() -> Path:
    """The folder that holds the data sets: DETECTRON2_DATASETS, or `datasets` under the working directory."""
    return Path(os.environ.get(_ROOT_VARIABLE) or _DEFAULT_ROOT).expanduser()


def dataset_metadata(name: str) -> Metadata:
    """The metadata of a registered data set, which needs no file on disk.

    Paths in it are those under the current DETECTRON2_DATASETS.

    Raises:
        ValueError: no data set has this name.
    """
    if name not in DatasetCatalog:
        raise ValueError(
            f"unknown data set {name!r}; registered are {', '.join(sorted(DatasetCatalog))}. Data sets of your own are "
            "described in DATASETS.CUSTOM; tools/dataset.py config writes it"
        )
    return MetadataCatalog.get(name)


def register_dataset(
    name: str,
    load: Callable[[Metadata], list[DatasetDict]],
    *,
    paths: Mapping[str, str | Path],
    source: str,
    **entries: Any,
) -> None:
    """Put a data set into Detectron2's catalogs, in place of one that has this name already.

    Args:
        name: the name used in configs.
        load: reads the annotations into Detectron2's standard dicts; gets the metadata, and is called on each use.
        paths: metadata entries that are files and folders `load` needs; relative ones are under `datasets_root()`.
        source: where the data come from, for the message when they are missing.
        entries: the other metadata entries.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    metadata = DatasetMetadata(paths, name=name, **entries)
    MetadataCatalog[name] = metadata
    DatasetCatalog.register(name, partial(_load_existing, load, metadata, dict(paths), source))


def _load_existing(
    load: Callable[[Metadata], list[DatasetDict]], metadata: Metadata, paths: Mapping[str, str | Path], source: str
) -> list[DatasetDict]:
    missing = [path for path in (getattr(metadata, key) for key in paths) if _is_missing(path)]
    if missing:
        listed = ", ".join(os.path.abspath(path) for path in missing)
        setting = os.environ.get(_ROOT_VARIABLE)
        # Absolute paths were given as such.
        hint = (
            ""
            if all(map(os.path.isabs, paths.values()))
            else f"Data sets are looked for under the folder that {_ROOT_VARIABLE} names "
            f"({f'now {setting}' if setting else f'not set: ./{_DEFAULT_ROOT}'}). "
        )
        raise MissingDatasetError(f"data set {metadata.name!r}: expected {listed}. {hint}{source}", missing, source)
    dicts = load(metadata)
    if not dicts:
        paths = ", ".join(getattr(metadata, key) for key in paths)
        raise ValueError(f"data set {metadata.name!r} has no images; it was read from {paths}")
    return dicts


def _is_missing(path: str) -> bool:
    if os.path.isdir(path):
        with os.scandir(path) as files:
            return next(files, None) is None
    return not os.path.exists(path)


def predicted_metadata(cfg: CfgNode) -> Metadata:
    """The metadata of the data set whose classes the model of a config predicts.

    Raises:
        ConfigError: The config names no data set, or one that is not registered.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ConfigError("DATASETS.TEST is empty: it names the data set whose classes the model predicts")
    try:
        return dataset_metadata(names[0])
    except ValueError as error:
        raise ConfigError(f"DATASETS.TEST: {error}") from error
