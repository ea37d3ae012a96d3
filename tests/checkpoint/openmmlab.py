"""Files as OpenMMLab's libraries write them, of models that are shrunk to a few values per weight."""

import gzip
import json
import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from tests.conftest import ROOT

FOLDER = ROOT / "tests/published/state_dicts"
DENSE = sorted(
    path.name.removeprefix("state_dict_").removesuffix(".json.gz")
    for pattern in ("*maskrcnn*", "*upernet*")
    for path in FOLDER.glob(f"{pattern}.json.gz")
)


def published_shapes(name: str) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint."""
    return json.loads(gzip.decompress((FOLDER / f"state_dict_{name}.json.gz").read_bytes()))


def meta_state(name: str) -> dict[str, torch.Tensor]:
    """Names of a published checkpoint with weights that only have a shape."""
    return {key: torch.empty(shape, device="meta") for key, shape in published_shapes(name).items()}


def small_state(name: str, deterministic: Any) -> "OrderedDict[str, torch.Tensor]":
    """Weights under the names of a published checkpoint, by rule, with at most two values per dimension."""
    state = OrderedDict()
    for key, shape in published_shapes(name).items():
        small = [min(side, 2) for side in shape]
        counter = key.endswith("num_batches_tracked")
        state[key] = torch.tensor(27) if counter else torch.from_numpy(np.asarray(deterministic.weight(key, small)))
    # As `state_dict` of a module and mmcv leave it.
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def foreign_class(module: str, name: str, bases: tuple[type, ...] = (), **attributes: Any) -> type:
    """A class of a library that exists only while a file is written; see `forget`."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].written_by_tests = True  # type: ignore[attr-defined]
    kind = type(name, bases, {"__module__": module, **attributes})
    setattr(sys.modules[module], name, kind)
    return kind


def forget() -> None:
    """Remove the libraries of `foreign_class`."""
    for name in [name for name, module in sys.modules.items() if getattr(module, "written_by_tests", False)]:
        del sys.modules[name]
