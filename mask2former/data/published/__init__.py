"""Published data sets on disk: make the label files that their owners leave to the user, and check complete trees."""

from collections.abc import Callable, Mapping

from mask2former.data.published.ade20k import prepare_ade20k
from mask2former.data.published.check import DatasetCheck, SettingCheck, check_datasets, check_settings, render
from mask2former.data.published.cityscapes import prepare_cityscapes
from mask2former.data.published.coco import prepare_coco
from mask2former.data.published.preparation import PreparationError, Summary

PREPARATIONS: Mapping[str, Callable[..., list[Summary]]] = {
    "coco": prepare_coco,
    "ade20k": prepare_ade20k,
    "cityscapes": prepare_cityscapes,
}

__all__ = [
    "PREPARATIONS",
    "DatasetCheck",
    "PreparationError",
    "SettingCheck",
    "Summary",
    "check_datasets",
    "check_settings",
    "prepare_ade20k",
    "prepare_cityscapes",
    "prepare_coco",
    "render",
]
