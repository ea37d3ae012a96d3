"""Reading files of weights: exact names, explicit prefixes, and without running code from the file."""

import errno
import logging
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dinat_common.errors import UserError

StateDict = dict[str, torch.Tensor]

# NumPy's types in the states of a training (best metrics, palettes), which torch reads only if they are listed.
_NUMPY: list[Any] = [
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (
            ("scalar", np.float64(0).__reduce__()[0]),
            ("_reconstruct", np.zeros(1).__reduce__()[0]),
        )
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "bool", "U")},
]
# What torch and safetensors raise where bytes are missing or wrong.
_DAMAGED = (SafetensorError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AssertionError, struct.error)
_LOG = logging.getLogger(__name__)

# Names of modules that only wrap another: torch.compile, FullyShardedDataParallel and activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Names under which parallel wrappers and training frameworks hold a whole model. Modules inside may have these names.
OUTER_WRAPPERS = frozenset({"module", "model"})


class _Unread:
    """Stands for a class or function of another program while a file is read, so that nothing of it is executed.

    What it would have made is an empty dict, which takes whatever the file assigns.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class CheckpointError(UserError):
    """A checkpoint can't be used. The message names the file and what was expected."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist."""


class CheckpointMismatchError(CheckpointError):
    """The names or shapes of a checkpoint are not those of the model."""


def read_checkpoint(
    path: str | Path, *, allow_pickle: bool = False, kind: str = "", shapes_only: bool = False
) -> dict[str, Any]:
    """Read a file of weights.

    Files that end in `.safetensors`, and torch files (any other extension), are read without running code from them.
    Objects of other programs beside the weights, such as the config of a training, become empty dicts, and a warning
    names their classes. A `.pkl` can execute arbitrary code and has to be allowed.

    Args:
        path: Local file: a training checkpoint, a state dict, or a dict with a state dict under "model" or
            "state_dict".
        allow_pickle: Whether to open `.pkl` files, which Detectron2's model zoo and older conversion scripts write, and
            torch files that can't be read otherwise.
        kind: Extension that decides how the file is read; by default that of `path`.
        shapes_only: Whether names and shapes are enough. Values are then mapped into memory where the format allows
            it, not read and not verified.

    Returns:
        The state dict under "model", without prefixes of wrappers, and the other content of the file (the metadata of
        a safetensors file under "metadata").

    Raises:
        CheckpointNotFoundError: The file does not exist.
        CheckpointError: The file is damaged, not a checkpoint, or a pickle that was not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"checkpoint not found: {path} (working directory {Path.cwd()})")
    content = _read_file(path, kind or path.suffix, allow_pickle, shapes_only)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    state, rest = _unpack(content)
    tensors = _as_tensors(state, path)
    return {**rest, "model": _without_wrappers(tensors)}


def without_wrappers(name: str) -> str:
    """Name of a weight without those of the modules that wrap the model or one of its parts.

    `module`, `model` and `_orig_mod` are left out at the beginning, in any order and number; names that only wrappers
    have, such as `_orig_mod`, are left out everywhere.

    Example::

        >>> without_wrappers("module._orig_mod.model.backbone._orig_mod.norm.weight")
        'backbone.norm.weight'
    """
    *modules, last = name.split(".")
    modules = [module for module in modules if module not in WRAPPERS]
    while modules and modules[0] in OUTER_WRAPPERS:
        del modules[0]
    return ".".join([*modules, last])


def _without_wrappers(state: StateDict) -> StateDict:
    plain = {without_wrappers(name): value for name, value in state.items()}
    # A model of its own kind may have weights of the same name beside and inside a module called "model".
    return plain if len(plain) == len(state) else state


def _unpack(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Split the content of a file into the state dict and the rest."""
    # Detectron2 and Swin's trainers use "model", timm's "state_dict"; one may contain the other.
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            state, rest = _unpack(content[key])
            return state, {**{name: value for name, value in content.items() if name != key}, **rest}
    return content, {}


def _read_file(path: Path, kind: str, allow_pickle: bool, shapes_only: bool) -> Any:
    if kind == ".pkl" and not allow_pickle:
        raise CheckpointError(
            f"{path}: opening a .pkl can execute arbitrary code. Convert it to .safetensors or .pth, or allow it with "
            "--allow-pickle if you trust its source"
        )
    try:
        if kind == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            return {"model": load_file(path)} | ({"metadata": metadata} if metadata else {})
        if kind == ".pkl":
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1")  # noqa: S301 - allowed by the user
        return _read_torch_file(path, allow_pickle, shapes_only)
    except pickle.UnpicklingError as error:
        # The reason in torch's message, without its advice to run the code in the file.
        reason = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not an allowed|\n|$)", str(error))
        raise CheckpointError(
            f"{path}: not a checkpoint of weights only; it is damaged, or contains objects that would execute code "
            "(tools/convert_weights.py --allow-pickle opens it if you trust its source): "
            f"{reason[1] if reason else _first_line(error)}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the program that wrote it is needed to open it: {_first_line(error)}"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {_first_line(error)}") from error
    except OSError as error:
        # Where the list of contents is cut off, torch looks for it before the file begins.
        if error.errno != errno.EINVAL:
            raise
        raise CheckpointError(f"{path}: damaged or not a checkpoint: it is incomplete") from error


def _read_torch_file(path: Path, allow_pickle: bool, shapes_only: bool) -> Any:
    """Read a torch file without running code from it, and without objects of other programs beside its weights.

    Raises:
        UnpicklingError: Weights need such objects, or the file is damaged.
    """
    # Files of PyTorch before 1.6 can't be mapped.
    load = partial(torch.load, path, map_location="cpu", mmap=shapes_only and zipfile.is_zipfile(path))
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return load(weights_only=True)
    except pickle.UnpicklingError:
        names = _foreign_names(path)
        content = _read_without(load, names)
        if content is not None:
            _LOG.warning("%s: objects of other programs are left out: %s", path, ", ".join(names))
            return content
        if allow_pickle:
            return load(weights_only=False)
        raise


def _foreign_names(path: Path) -> list[str]:
    """Classes and functions in a torch file that torch does not read; none if the file is not one of today's format."""
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *_DAMAGED):
        return []


def _read_without(load: Callable[..., Any], names: list[str]) -> Any:
    """Content of a torch file with empty dicts for objects of some classes; None if its weights need these objects."""
    if not names:
        return None
    try:
        with torch.serialization.safe_globals([*_NUMPY, *((_Unread, name) for name in names)]):
            content = load(weights_only=True)
    except (pickle.UnpicklingError, AttributeError, *_DAMAGED):
        # An object that takes no values in the way of a dict.
        return None
    state = _unpack(content)[0] if isinstance(content, Mapping) else {}
    return content if state and all(isinstance(value, torch.Tensor | np.ndarray) for value in state.values()) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no further details"])[0]


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
