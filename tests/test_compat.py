"""Import paths that users rely on: the public ones, and those of earlier versions."""

import importlib
import sys

import pytest

from mask2former import Predictor, compat


@pytest.fixture(autouse=True)
def fresh():
    """Each test imports old paths for the first time."""
    for name in compat.MOVED:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old", compat.MOVED)
def test_an_old_path_gives_the_names_of_the_new_modules(old):
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to (mask2former|dinat_common)"):
        module = importlib.import_module(old)
    for new in map(importlib.import_module, compat.MOVED[old]):
        public = [name for name in getattr(new, "__all__", vars(new)) if not name.startswith("_")]
        assert public
        assert all(getattr(module, name) is not None for name in public)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


PUBLIC = {
    "mask2former": ["ConfigError", "MaskFormer", "Predictor", "add_maskformer2_config", "setup_cfg"],
    "mask2former.data": ["build_train_mapper"],
    "mask2former.engine": ["Trainer"],
    "mask2former.modeling.inference": ["InferenceSettings", "run"],
    "mask2former.test_time_augmentation": ["SemanticSegmentorWithTTA"],
    "dinat_backbone": ["D2DiNAT", "DiNAT", "NeighborhoodAttention2D", "neighborhood_attention_2d", "add_dinat_config"],
    "train_net": ["Trainer", "get_config"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_imports(module):
    assert [name for name in PUBLIC[module] if not hasattr(importlib.import_module(module), name)] == []


# Names that code outside this repository imports, by old path.
NAMES = {
    "mask2former.predictor": ["Predictor", "ImageLike"],
    "mask2former.staged_prediction": ["StagedPredictor", "Analysis"],
    "mask2former.predictions": ["Prediction", "PanopticPrediction", "InstancePrediction", "SemanticPrediction"],
    "mask2former.visualization": ["ClassTable", "draw_panoptic", "draw_instances", "draw_semantic", "side_by_side"],
    "mask2former.visualization.classes": ["ClassTable", "Task"],
    "mask2former.settings": ["SETTINGS", "Setting"],
    "mask2former.image_files": ["find_images", "predict_files"],
    "mask2former.files": ["atomic_write", "write_json", "sha256_of"],
    "mask2former.png": ["encode_png", "panoptic_colors"],
    "mask2former.rle": ["encode_masks"],
    "mask2former.engine.checkpoint": ["Checkpointer"],
    "mask2former.engine.weights": ["CheckpointError", "read_checkpoint"],
    "mask2former.engine.download": ["fetch", "DownloadError"],
    "mask2former.data.preparation": ["prepare_coco", "prepare_ade20k", "prepare_cityscapes", "PREPARATIONS"],
}


@pytest.mark.filterwarnings("ignore:mask2former:DeprecationWarning")
@pytest.mark.parametrize("old", NAMES)
def test_names_that_users_import(old):
    module = importlib.import_module(old)
    assert [name for name in NAMES[old] if not hasattr(module, name)] == []


def test_names_of_packages_that_moved():
    from mask2former.engine import BaseTrainer, Checkpointer, CheckpointError, Trainer, read_checkpoint, report_errors
    from mask2former.tasks import predicted_metadata

    assert BaseTrainer is Trainer
    assert all((Checkpointer, CheckpointError, read_checkpoint, report_errors, predicted_metadata))
    with pytest.raises(ImportError):
        from mask2former.engine import nothing  # noqa: F401


@pytest.mark.filterwarnings("ignore:mask2former:DeprecationWarning")
def test_from_imports():
    from mask2former.predictor import Predictor as old
    from mask2former.staged_prediction import StagedPredictor as staged

    assert old is staged is Predictor


def test_other_modules_are_not_touched():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mask2former.never_there")
