"""Every data set of the settings, registered in Detectron2's catalogs when this package is imported.

Nothing is read at that moment: annotations are loaded, and paths put together, when a data set is used.
"""

from mask2former.data.datasets import ade20k, cityscapes, coco, shapes
from mask2former.data.datasets.coco_layout import Category, CocoLayout, register_coco_layout
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.data.datasets.registry import (
    AnnotationError,
    MissingDatasetError,
    dataset_metadata,
    datasets_root,
    predicted_metadata,
    register_dataset,
)

for _dataset in (ade20k, cityscapes, coco, shapes):
    _dataset.register()

__all__ = [
    "AnnotationError",
    "Category",
    "CocoLayout",
    "MissingDatasetError",
    "dataset_metadata",
    "datasets_root",
    "predicted_metadata",
    "register_coco_layout",
    "register_custom_datasets",
    "register_dataset",
]
