"""All data sets of the settings. Importing this package registers them in Detectron2's catalogs.

Nothing is read then: annotations are loaded, and paths computed, when a data set is used.
"""

from mask2former.data.datasets import ade20k, cityscapes, coco, imagenet, shapes
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.data.datasets.registry import (
    AnnotationError,
    Category,
    CocoLayout,
    MissingDatasetError,
    dataset_metadata,
    datasets_root,
    predicted_metadata,
    register_coco_layout,
    register_dataset,
)

for _dataset in (ade20k, cityscapes, coco, imagenet, shapes):
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
