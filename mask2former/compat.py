"""Import paths of modules that have moved, kept working for code that uses them. This table is the only place."""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the modules that hold its names now.
MOVED: dict[str, tuple[str, ...]] = {
    "mask2former.checkpoint.download": ("dinat_common.download",),
    "mask2former.checkpoint.reading": ("dinat_common.weights",),
    "mask2former.data.agreement": ("mask2former.data.build",),
    "mask2former.data.augmentation": ("mask2former.data.dataset_mapper",),
    "mask2former.data.checking": ("mask2former.data.published",),
    "mask2former.data.datasets.coco_layout": ("mask2former.data.datasets.registry",),
    "mask2former.data.datasets.custom_entry": ("mask2former.data.datasets.custom",),
    "mask2former.data.datasets.shapes_scene": ("mask2former.data.datasets.shapes",),
    "mask2former.data.parallel": ("mask2former.utils.parallel",),
    "mask2former.data.preparation": ("mask2former.data.published",),
    "mask2former.data.sampling": ("mask2former.data.build",),
    "mask2former.engine.averaging": ("mask2former.engine.hooks",),
    "mask2former.engine.best": ("mask2former.engine.hooks",),
    "mask2former.engine.checkpoint": ("mask2former.checkpoint",),
    "mask2former.engine.device": ("mask2former.engine.run",),
    "mask2former.engine.download": ("mask2former.checkpoint",),
    "mask2former.engine.loss_curves": ("mask2former.engine.metrics_log",),
    "mask2former.engine.matching": ("mask2former.checkpoint",),
    "mask2former.engine.validation": ("mask2former.engine.hooks",),
    "mask2former.engine.weights": ("mask2former.checkpoint",),
    "mask2former.engine.writing": ("mask2former.engine.metrics_log",),
    "mask2former.files": ("dinat_common.files",),
    "mask2former.image_files": ("mask2former.prediction.files",),
    "mask2former.journal": ("mask2former.utils.journal",),
    "mask2former.modeling.build": ("mask2former.modeling.transformer_decoder",),
    "mask2former.modeling.losses": ("mask2former.modeling.criterion", "mask2former.modeling.matcher"),
    "mask2former.modeling.point_sampling": ("mask2former.modeling.criterion", "mask2former.modeling.matcher"),
    "mask2former.modeling.postprocessing": ("mask2former.modeling.inference",),
    "mask2former.modeling.transformer_decoder.attention": (
        "mask2former.modeling.transformer_decoder.mask2former_transformer_decoder",
    ),
    "mask2former.modeling.transformer_decoder.position_encoding": ("mask2former.modeling.transformer_decoder",),
    "mask2former.png": ("mask2former.utils.label_images",),
    "mask2former.predict_each": ("mask2former.prediction.files",),
    "mask2former.predictions": ("mask2former.prediction.results",),
    "mask2former.predictor": ("mask2former.prediction.predictor",),
    "mask2former.reproduction": ("mask2former.evaluation.reproduction",),
    "mask2former.rle": ("mask2former.utils.label_images",),
    "mask2former.settings": ("mask2former.model_zoo", "mask2former.tasks"),
    "mask2former.staged_prediction": ("mask2former.prediction.predictor",),
    "mask2former.utils.errors": ("dinat_common.errors",),
    "mask2former.utils.files": ("dinat_common.files",),
    "mask2former.visualization": ("mask2former.prediction.drawing", "mask2former.data.classes"),
    "mask2former.visualization.classes": ("mask2former.data.classes", "mask2former.tasks"),
}
# Package -> the modules that hold names which used to be imported from it.
MOVED_NAMES: dict[str, tuple[str, ...]] = {
    "mask2former.engine": ("mask2former.checkpoint", "mask2former.engine.trainer", "dinat_common.errors"),
    "mask2former.tasks": ("mask2former.data.datasets",),
}
# Old name -> new name of what was renamed or merged.
RENAMED = {
    "BaseTrainer": "Trainer",
    "CurveWriter": "MetricsLog",
    "StagedPredictor": "Predictor",
    "panoptic_colors": "ids_to_colors",
}


def _lookup(module: str, new: Sequence[str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds old names in new modules."""

    def find(name: str) -> Any:
        for target in map(importlib.import_module, new):
            if hasattr(target, RENAMED.get(name, name)):
                return getattr(target, RENAMED.get(name, name))
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


class _MovedModules(MetaPathFinder, Loader):
    """Makes a module for each old path, which looks names up in the new modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        has_children = any(old.startswith(fullname + ".") for old in MOVED)
        return ModuleSpec(fullname, self, is_package=has_children)

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {' and '.join(new)}", DeprecationWarning, stacklevel=2)
        vars(module)["__getattr__"] = _lookup(module.__name__, new)


def install() -> None:
    """Let old import paths and names be found; repeated calls have no effect."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
    for name, new in MOVED_NAMES.items():
        vars(importlib.import_module(name)).setdefault("__getattr__", _lookup(name, new))
