"""Write a config that trains on a data set."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mask2former.data.custom.choices import Recipe
from mask2former.data.custom.memory import COSTS, PICO
from mask2former.data.custom.source import Split
from mask2former.data.datasets.custom import CustomDataset
from mask2former.utils.files import atomic_write

SIZES = (*COSTS, PICO)


def read_backbones(base_folder: Path) -> dict[str, dict[str, Any]]:
    """The section MODEL.DINAT of each `dinat_SIZE.yaml` of a folder (configs/_base_), by size."""
    files = {size: base_folder / f"dinat_{size}.yaml" for size in SIZES}
    return {size: yaml.safe_load(file.read_text(encoding="utf-8"))["MODEL"]["DINAT"] for size, file in files.items()}


def write_config(
    path: Path, recipe: Recipe, datasets: Mapping[Split, CustomDataset], base_folder: Path, command: str
) -> None:
    """Write a config file, whole or not at all.

    Args:
        path: the file.
        recipe: the settings.
        datasets: what to train and to evaluate on.
        base_folder: configs/_base_.
        command: how it was made, for its first line.
    """
    folder = path.parent.resolve()
    bases = ["mask2former.yaml", f"dinat_{recipe.size}.yaml", *(["shapes.yaml"] if recipe.size == PICO else [])]
    values = {
        **recipe.values,
        "DATASETS.TRAIN": [datasets["train"].name],
        "DATASETS.TEST": [datasets["val"].name],
        "DATASETS.CUSTOM": [_entry(dataset, folder) for dataset in datasets.values()],
        "OUTPUT_DIR": str(folder / "training"),
    }
    content = {"_BASE_": [_path(base_folder.resolve() / base, folder) for base in bases], **_nested(values)}
    comments = [f"Written by: {command}", "", *(f"- {reason}" for reason in recipe.reasons)]
    with atomic_write(path) as file:
        for comment in comments:
            for line in textwrap.wrap(comment, 116, subsequent_indent="  ") or [""]:
                file.write(f"# {line}".rstrip() + "\n")
        yaml.safe_dump(content, file, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _entry(dataset: CustomDataset, folder: Path) -> dict[str, Any]:
    entry = dataset.entry()
    for key in dataset.paths:
        entry[key] = _path(Path(entry[key]), folder)
    return entry


def _path(path: Path, folder: Path) -> str:
    """A path relative to a config's folder if it is near, so that both can be moved together."""
    near = path.is_relative_to(folder.parent)
    return Path(os.path.relpath(path, folder)).as_posix() if near else str(path)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a config from keys with dots."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return nested


def describe(recipe: Recipe) -> Sequence[str]:
    """The reasons as lines of text."""
    return [f"- {reason}" for reason in recipe.reasons]
