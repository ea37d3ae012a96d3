"""Published data sets on disk: label files that their owners leave to the user, and checks of complete trees."""

from collections.abc import Callable, Mapping

from mask2former.data.published.ade20k import prepare_ade20k
from mask2former.data.published.check import check_setting, check_settings
from mask2former.data.published.cityscapes import prepare_cityscapes
from mask2former.data.published.coco import prepare_coco
from mask2former.data.published.command import add_arguments, report
from mask2former.data.published.findings import Finding, SettingReport, render
from mask2former.data.published.jobs import PreparationError, Summary

PREPARATIONS: Mapping[str, Callable[..., list[Summary]]] = {
    "coco": prepare_coco,
    "ade20k": prepare_ade20k,
    "cityscapes": prepare_cityscapes,
}

__all__ = [
    "PREPARATIONS",
    "Finding",
    "PreparationError",
    "SettingReport",
    "Summary",
    "add_arguments",
    "check_setting",
    "check_settings",
    "prepare_ade20k",
    "prepare_cityscapes",
    "prepare_coco",
    "render",
    "report",
]
