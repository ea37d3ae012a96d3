"""Reading weight files and comparing them with a model: exact names, explicit prefixes, no guesses."""

import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tabulate import tabulate

StateDict = dict[str, torch.Tensor]

# Wrappers that put their own name before every name of the model.
_WRAPPER_PREFIXES = ("module.", "model.")
# Made from the config, so that a file may lack them or have them without any effect on what the model computes.
_FROM_CONFIG = frozenset({"criterion.empty_weight", "pixel_mean", "pixel_std"})
_BACKBONE = "backbone."
# Norms of the backbone's outputs, which a classifier does not have.
_OUTPUT_NORM = re.compile(r"backbone\.norm\d+\.")
_ROWS_SHOWN = 30


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file and what was expected."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint whose names or shapes are not those of the model."""


def read_checkpoint(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a file of weights.

    `.safetensors` and torch files (any other ending) are read without running code in them. A `.pkl` can run any code,
    so it has to be allowed.

    Args:
        path: a local file: a training checkpoint, a state dict, or a dict with a state dict under "model".
        allow_pickle: open `.pkl` files, as Detectron2's model zoo and older conversion scripts write them.

    Returns:
        A dict with the state dict under "model", wrapper prefixes removed, and what else the file holds.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: not a checkpoint, damaged, or a pickle that was not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"checkpoint not found: {path} (looked in {Path.cwd()})")
    content = _read_file(path, allow_pickle)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    checkpoint = dict(content) if isinstance(content.get("model"), Mapping) else {"model": content}
    checkpoint["model"] = strip_wrappers(_as_tensors(checkpoint["model"], path))
    return checkpoint


def _read_file(path: Path, allow_pickle: bool) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            return _read_pickle(path, allow_pickle)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of weights alone; it is damaged, or holds objects that would have to be run: "
            f"{_first_line(error)}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no more is known"])[0]


def _read_pickle(path: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise CheckpointError(
            f"{path}: a .pkl can run any code when it is opened. Convert it to .safetensors or .pth, or, if you trust "
            "where it comes from, allow it (--allow-pickle)"
        )
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")  # noqa: S301 - asked for by the user


def _as_tensors(state: Mapping[str, Any], path: Path) -> StateDict:
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor | np.ndarray):
            found = ", ".join(map(str, list(state)[:5]))
            raise CheckpointError(
                f'{path}: expected a state dict, alone or under the key "model"; {name!r} is a '
                f"{type(value).__name__} (keys: {found}{', ...' if len(state) > 5 else ''})"
            )
        tensors[name] = torch.as_tensor(value)
    if not tensors:
        raise CheckpointError(f"{path}: holds no weights")
    return tensors


def strip_wrappers(state: StateDict) -> StateDict:
    """Remove `module.` and `model.` from names, each where all names have it."""
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


@dataclass(frozen=True)
class Comparison:
    """How the names and shapes of a file compare with those of a model.

    Attributes:
        fitting: names with one shape on both sides.
        differing: (name, shape in the file, shape in the model).
        missing: names (and shapes) of the model that the file lacks.
        unexpected: names (and shapes) of the file that the model lacks.
    """

    fitting: tuple[str, ...]
    differing: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: dict[str, tuple[int, ...]]
    unexpected: dict[str, tuple[int, ...]]

    @property
    def exact(self) -> bool:
        """Whether nothing differs that is not made from the config anyway."""
        return not (self.differing or self.missing or self.unexpected)

    def summary(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.fitting)} names fit, {len(self.differing)} have another shape, {len(self.missing)} are not in "
            f"the file, {len(self.unexpected)} are not in the model"
        )

    def table(self) -> str:
        """What does not fit, a row per name; the first rows of each kind where there are many."""
        kinds = [
            [(name, _shape(in_file), _shape(in_model)) for name, in_file, in_model in self.differing],
            [(name, "missing", _shape(shape)) for name, shape in self.missing.items()],
            [(name, _shape(shape), "unknown") for name, shape in self.unexpected.items()],
        ]
        rows = []
        for kind in kinds:
            rows += kind[:_ROWS_SHOWN]
            if len(kind) > _ROWS_SHOWN:
                rows.append((f"... and {len(kind) - _ROWS_SHOWN} more", "", ""))
        return tabulate(rows, headers=("name", "file", "model"), tablefmt="simple", disable_numparse=True)


def compare(state: Mapping[str, torch.Tensor], model_state: Mapping[str, torch.Tensor]) -> Comparison:
    """Compare a state dict with that of a model, name by name."""
    in_file = {name: tuple(value.shape) for name, value in state.items()}
    in_model = {name: tuple(value.shape) for name, value in model_state.items()}
    common = [name for name in in_model if name in in_file]
    return Comparison(
        fitting=tuple(name for name in common if in_file[name] == in_model[name]),
        differing=tuple((n, in_file[n], in_model[n]) for n in common if in_file[n] != in_model[n]),
        missing={n: shape for n, shape in in_model.items() if n not in in_file and n not in _FROM_CONFIG},
        unexpected={n: shape for n, shape in in_file.items() if n not in in_model and n not in _FROM_CONFIG},
    )


def backbone_weights(state: StateDict, model_names: Collection[str]) -> StateDict | None:
    """The weights of a file that holds a backbone and nothing else, under their names in the model.

    Names are those of the model, or the same without `backbone.`. None where the file is something else: a name is not
    the backbone's, or the backbone lacks more than its output norms.
    """
    of_backbone = {name for name in model_names if name.startswith(_BACKBONE)}
    named = {name if name.startswith(_BACKBONE) else _BACKBONE + name: value for name, value in state.items()}
    lacking = {name for name in of_backbone - named.keys() if not _OUTPUT_NORM.match(name)}
    if lacking or not named.keys() <= of_backbone:
        return None
    return named


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
