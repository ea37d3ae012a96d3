"""Fixtures shared by all tests; nothing here or in a test touches the network."""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

# Read by OpenMP when PyTorch is imported. Several processes run tests; one thread each keeps them from waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from examples.miniature_datasets import DATASETS, draw_dataset
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


def config_path(setting: str) -> Path:
    """The published path of one of the eight settings."""
    return ROOT / SETTINGS[setting].config_file


def golden(kind: str, setting: str) -> dict:
    """Golden `config` or `state_dict` entries of a setting: what all settings share, and its own."""
    entries = json.loads((ROOT / "tests" / "golden" / f"{kind}.json").read_text())
    return entries["common"] | entries[setting]


def load_script(path: str) -> ModuleType:
    """Import a script of the repository, such as `tools/deterministic_weights.py`, as a module."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def deterministic() -> ModuleType:
    """The functions that make the inputs and weights of the parity fixtures."""
    return load_script("tools/deterministic_weights.py")


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory, deterministic: ModuleType) -> Callable[[str], list[str]]:
    """Function that returns the config keys of a model of `tests.kinds.KINDS`, with weights made by rule."""
    from detectron2.modeling import build_model

    from mask2former import setup_cfg
    from tests.kinds import KINDS

    folder = tmp_path_factory.mktemp("kinds")

    @cache
    def keys(name: str) -> list[str]:
        kind, file = KINDS[name], folder / f"{name}.safetensors"
        deterministic.save(deterministic.load_weights(build_model(setup_cfg(kind.config, kind.opts))), file)
        return [*kind.opts, "MODEL.WEIGHTS", str(file)]

    return keys


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DETECTRON2_DATASETS with prepared miniature trees of all three data sets; only to be read."""
    root = tmp_path_factory.mktemp("trees")
    for dataset in DATASETS:
        draw_dataset(root, dataset)
    return root


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def loggers_restored() -> Iterator[None]:
    """For tests that run a script in this process: its logs go to a console that is gone when the test ends."""
    loggers = [
        logging.getLogger(name) for name in ("fvcore", "detectron2", "mask2former", "dinat_backbone", "dinat_common")
    ]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers
