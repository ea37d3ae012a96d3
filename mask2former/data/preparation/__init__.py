"""Make the label files that the owners of the data sets don't publish, from those that they do.

`datasets/prepare_*.py` are the command lines. `jobs` is what all have in common: several processes, progress, and
taking up what was interrupted.
"""

from collections.abc import Callable, Mapping

from mask2former.data.preparation.ade20k import prepare_ade20k
from mask2former.data.preparation.cityscapes import prepare_cityscapes
from mask2former.data.preparation.coco import prepare_coco
from mask2former.data.preparation.command import add_arguments, report
from mask2former.data.preparation.jobs import PreparationError, Summary

PREPARATIONS: Mapping[str, Callable[..., list[Summary]]] = {
    "coco": prepare_coco,
    "ade20k": prepare_ade20k,
    "cityscapes": prepare_cityscapes,
}

__all__ = [
    "PREPARATIONS",
    "PreparationError",
    "Summary",
    "add_arguments",
    "prepare_ade20k",
    "prepare_cityscapes",
    "prepare_coco",
    "report",
]
