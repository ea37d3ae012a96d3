"""Configs of the published settings, for benchmarks that build their models."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from mask2former import setup_cfg
from mask2former.data.datasets import dataset_metadata
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]


def read_config(setting: str, opts: Sequence[str]) -> CfgNode:
    """Read the config of a setting without weights, ready for building its model."""
    cfg = setup_cfg(ROOT / SETTINGS[setting].config_file, ["MODEL.WEIGHTS", "", *opts])
    for name in cfg.DATASETS.TRAIN:
        dataset_metadata(name)  # the model needs to know which classes are things
    return cfg
