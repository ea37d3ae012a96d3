"""Which training images are shown more often than others."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch import Tensor
from tqdm import tqdm

from mask2former.data.dataset_mapper import TargetKind
from mask2former.data.image_io import read_label_map
from mask2former.utils.parallel import default_workers, report_interval


def repeat_factors(
    dicts: Sequence[Mapping[str, Any]], kind: TargetKind, *, threshold: float, ignore_label: int, sqrt: bool = True
) -> Tensor:
    """How often each image is shown in an epoch, by the rarest class in it (Gupta et al., LVIS, CVPR 2019, section 4).

    Args:
        dicts: in Detectron2's format, with annotations of the kind. Semantic label maps are read.
        kind: what targets are made from.
        threshold: images with a class that fewer than this part of the images have are repeated.
        ignore_label: no class, in semantic label maps.
        sqrt: repeat with the square root of how much rarer the class is, as published.

    Returns:
        [len(dicts)], at least 1 each.
    """
    found = [
        {"annotations": [{"category_id": c} for c in sorted(classes)]}
        for classes in _classes(dicts, kind, ignore_label)
    ]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(found, threshold, sqrt)


def _classes(dicts: Sequence[Mapping[str, Any]], kind: TargetKind, ignore_label: int) -> Iterable[set[int]]:
    if kind != "semantic":
        key = {"instance": "annotations", "panoptic": "segments_info"}[kind]
        # Crowds are no targets.
        return [{entry["category_id"] for entry in image[key] if not entry.get("iscrowd")} for image in dicts]
    paths = [image["sem_seg_file_name"] for image in dicts]
    with ThreadPoolExecutor(default_workers()) as executor:
        maps = executor.map(lambda path: np.unique(read_label_map(path)).tolist(), paths)
        labels = tqdm(maps, "classes of label maps", len(paths), unit="map", mininterval=report_interval())
        return [set(values) - {ignore_label} for values in labels]
