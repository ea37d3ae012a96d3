"""Reading files of weights: exact names, explicit prefixes, and no code in a file is run."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mask2former.utils.errors import UserError

StateDict = dict[str, torch.Tensor]

# Wrappers that put their own name before every name of the model.
_WRAPPER_PREFIXES = ("module.", "model.")
# Where a file keeps its state dict: Detectron2 and Swin's trainers, timm's; one may hold the other.
_CONTAINERS = ("model", "state_dict")
# Numbers of NumPy among a training's states (best metrics, say), which torch does not read unless told.
_NUMPY_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
]


class CheckpointError(UserError):
    """A checkpoint that can't be used; the message names the file and what was expected."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint whose names or shapes are not those of the model."""


def read_checkpoint(path: str | Path, *, allow_pickle: bool = False, kind: str = "") -> dict[str, Any]:
    """Read a file of weights.

    `.safetensors` and torch files (any other ending) are read without running code in them. A `.pkl` can run any code,
    so it has to be allowed.

    Args:
        path: a local file: a training checkpoint, a state dict, or a dict with a state dict under "model" or
            "state_dict".
        allow_pickle: open `.pkl` files, as Detectron2's model zoo and older conversion scripts write them.
        kind: the ending to go by, where that of `path` says something else.

    Returns:
        A dict with the state dict under "model", wrapper prefixes removed, and what else the file holds (of
        safetensors, its texts under "metadata").

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: not a checkpoint, damaged, or a pickle that was not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"checkpoint not found: {path} (looked in {Path.cwd()})")
    content = _read_file(path, kind or path.suffix, allow_pickle)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    state, rest = _unpack(content)
    return {**rest, "model": strip_wrappers(_as_tensors(state, path))}


def _unpack(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The state dict, and what lies beside it."""
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            state, rest = _unpack(content[key])
            return state, {**{name: value for name, value in content.items() if name != key}, **rest}
    return content, {}


def _read_file(path: Path, kind: str, allow_pickle: bool) -> Any:
    try:
        if kind == ".safetensors":
            return _read_safetensors(path)
        if kind == ".pkl":
            return _read_pickle(path, allow_pickle)
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of weights alone; it is damaged, or holds objects that would have to be run: "
            f"{_unpickling_reason(error)}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {_first_line(error)}") from error


def _unpickling_reason(error: pickle.UnpicklingError) -> str:
    """The reason in torch's message, without its advice to run what is in the file."""
    reason = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not an allowed|\n|$)", str(error))
    return reason[1] if reason else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no more is known"])[0]


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    content: dict[str, Any] = {"model": load_file(path)}
    return {**content, "metadata": metadata} if metadata else content


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
                f'{path}: expected a state dict, alone or under the key "model" or "state_dict"; {name!r} is a '
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
