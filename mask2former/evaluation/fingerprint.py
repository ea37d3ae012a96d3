"""What predictions depend on, in short: whether those of an interrupted evaluation are still valid."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

# Changes when records of older versions of this package can't be used any more.
_VERSION = 1
_SECTIONS = ("INPUT", "MODEL", "TEST")
# Neither changes a prediction; the weights themselves count, not where they came from.
_WITHOUT_EFFECT = (
    ("MODEL", "WEIGHTS"),
    ("TEST", "EVAL_PERIOD"),
    ("TEST", "EXPECTED_RESULTS"),
)
_GROUND_TRUTH = (
    "image_root",
    "image_dir",
    "json_file",
    "panoptic_json",
    "panoptic_root",
    "sem_seg_root",
    "gt_dir",
)


def evaluation_fingerprint(cfg: CfgNode, dataset_name: str, weights: str, *, augmented: bool) -> dict[str, Any]:
    """Describe an evaluation so that two with one description have the same predictions and results.

    Args:
        cfg: the config.
        dataset_name: a registered data set.
        weights: `weights_digest` of the model.
        augmented: whether TEST.AUG takes part.

    Returns:
        What JSON can hold: hashes of weights and config; name, time and size of the data set's files and folders.
    """
    return {
        "version": _VERSION,
        "data set": dataset_name,
        "ground truth": _files_of(dataset_name),
        "config": config_digest(cfg, augmented=augmented),
        "weights": weights,
    }


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all names, types, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(cfg: CfgNode, *, augmented: bool) -> str:
    """SHA-256 of the config keys that a prediction depends on; `augmented`: whether TEST.AUG takes part."""
    cfg = cfg.clone()
    cfg.defrost()
    for section, key in _WITHOUT_EFFECT:
        cfg[section].pop(key, None)
    if not augmented:
        cfg.TEST.pop("AUG")
    # The first training set says which classes are things; of one that the config describes, the config does.
    parts = [f"{name}: {cfg[name].dump()}" for name in _SECTIONS] + [str(cfg.DATASETS.TRAIN)]
    parts += [f"{entry['name']}: {entry['classes']}" for entry in cfg.DATASETS.get("CUSTOM", ())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files_of(dataset_name: str) -> list[list[Any]]:
    metadata = MetadataCatalog.get(dataset_name)
    paths = [Path(metadata.get(key)) for key in _GROUND_TRUTH if metadata.get(key)]
    return [[str(path.absolute()), path.stat().st_mtime_ns, path.stat().st_size] for path in paths if path.exists()]
