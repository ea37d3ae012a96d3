"""Check published data sets: whether they load, which files exist, and with `full` the content of every file."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from tabulate import tabulate
from tqdm import tqdm

from dinat_common.errors import UserError
from dinat_common.files import read_text
from mask2former.data import problems
from mask2former.data.datasets import MissingDatasetError, cityscapes, dataset_metadata
from mask2former.data.datasets.class_folders import ClassImages
from mask2former.data.datasets.registry import DatasetDict
from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids
from mask2former.data.problems import Findings, Found, Problem, compare_segments, few, segment_areas, size_text
from mask2former.data.published.preparation import SPLITS
from mask2former.utils.input_files import files_below
from mask2former.utils.parallel import processes, report_interval

# Number of images of the published data sets, by the beginning of their names.
PUBLISHED_IMAGES: Mapping[str, Mapping[str, int]] = {
    "coco": {"train": 118287, "val": 5000},
    "ade20k": {"train": 20210, "val": 2000},
    "cityscapes": {"train": 2975, "val": 500},
    "imagenet": {"train": 1281167, "val": 50000},
    # Its releases differ.
    "imagenet_22k": {},
}
# Names of data sets in the configs of the settings; {} is the split.
_NAMES = {
    "coco-panoptic": {"train": "coco_2017_train_panoptic", "val": "coco_2017_val_panoptic_with_sem_seg"},
    "coco-instance": "coco_2017_{}",
    "ade20k-panoptic": "ade20k_panoptic_{}",
    "ade20k-instance": "ade20k_instance_{}",
    "ade20k-semantic": "ade20k_sem_seg_{}",
    "cityscapes-panoptic": "cityscapes_fine_panoptic_{}",
    "cityscapes-instance": "cityscapes_fine_instance_seg_{}",
    "cityscapes-semantic": "cityscapes_fine_sem_seg_{}",
    # Of the classifiers. Detectors have the data of coco-instance, UPerNets those of ade20k-semantic.
    "imagenet": "imagenet_{}",
    "imagenet_22k": "imagenet_22k_{}",
}
# Ids of Cityscapes that pixels can have. Ids from the divisor on are this times the class, plus a number.
_CITYSCAPES_IDS = frozenset(range(34))
_CITYSCAPES_DIVISOR = 1000

_AGAIN = "unpack or prepare the data set again"
UNLOADABLE = Problem("missing or damaged files", _AGAIN)
ABSENT_FROM_INSTANCES = Problem("images of the panoptic JSON that the instances JSON lacks", _AGAIN)
OTHER_COUNT = Problem("number of images differs from the published data set", "nothing: subsets work", blocks=False)
UNANNOTATED = Problem("images without an entry in the annotations", "nothing: they are ignored", blocks=False)


@dataclass(frozen=True)
class SettingCheck:
    """Result of the check of one of the settings of `mask2former.model_zoo`, or of the classifiers' data.

    Attributes:
        setting: Name of the setting, such as coco-panoptic, "imagenet" or "imagenet_22k".
        images: Number of images by split, for the splits that were checked.
        findings: Problems by split.
    """

    setting: str
    images: Mapping[str, int]
    findings: Mapping[str, Findings]

    @property
    def can_train(self) -> bool:
        """Whether the training split was checked and no problem prevents training."""
        return "train" in self.findings and not self.findings["train"].blocking

    @property
    def can_evaluate(self) -> bool:
        """Whether the validation split was checked and no problem prevents evaluation."""
        return "val" in self.findings and not self.findings["val"].blocking


@dataclass(frozen=True)
class DatasetCheck:
    """Result of the check of one registered data set.

    Attributes:
        images: Number of images; of those on disk if the data set can't be loaded.
        findings: Problems.
    """

    images: int
    findings: Findings


@dataclass(frozen=True)
class _LoadedSplit:
    """A split, without dicts if it can't be loaded."""

    metadata: Metadata
    on_disk: list[str]
    dicts: Sequence[DatasetDict]
    findings: Findings
    missing: set[str] = field(default_factory=set)

    @property
    def images(self) -> int:
        return len(self.dicts) or len(self.on_disk)


def dataset_name(setting: str, split: str) -> str:
    """Name in the catalogs of the data set that a setting uses for training ("train") or evaluation ("val")."""
    names = _NAMES[setting]
    return names.format(split) if isinstance(names, str) else names[split]


def check_settings(
    settings: Sequence[str], *, full: bool = False, workers: int = 1, splits: Sequence[str] = SPLITS
) -> list[SettingCheck]:
    """Check the files of settings under DETECTRON2_DATASETS.

    The annotations are loaded as for training and evaluation, and every file that they name must exist.

    Args:
        settings: Names in `mask2former.model_zoo.SETTINGS`, "imagenet" or "imagenet_22k".
        full: Also open every file once, and compare labels with the images, with each other, and with the classes.
        workers: Number of processes for `full`.
        splits: Any of "train" and "val".

    Raises:
        ValueError: A setting or split is unknown.
    """
    for kind, names, known in (("setting", settings, _NAMES), ("split", splits, SPLITS)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown {kind} {unknown[0]!r}, expected one of {', '.join(known)}")
    loaded = {(setting, split): _load(dataset_name(setting, split)) for setting in settings for split in splits}
    if full:
        _open_files(list(loaded.values()), workers)
    return [
        SettingCheck(
            setting,
            {name: loaded[setting, name].images for name in splits},
            {name: loaded[setting, name].findings for name in splits},
        )
        for setting in settings
    ]


def check_datasets(names: Iterable[str]) -> dict[str, DatasetCheck]:
    """Check the files of registered data sets, each once: whether they load, and whether all files exist.

    Args:
        names: Names in Detectron2's catalogs.

    Raises:
        ConfigError: No data set has this name.
    """
    loaded = {name: _load(name) for name in dict.fromkeys(names)}
    return {name: DatasetCheck(split.images, split.findings) for name, split in loaded.items()}


def _load(name: str) -> _LoadedSplit:
    """Load a data set, count its images, and look for all files that it names."""
    metadata = dataset_metadata(name)
    folder, findings = Path(metadata.get("image_root") or metadata.image_dir), Findings()
    dicts: Any = []
    try:
        dicts = DatasetCatalog.get(name)
    except UserError as error:
        missing = isinstance(error, MissingDatasetError) and error.paths
        findings.add(UNLOADABLE, f"{', '.join(error.paths)}. {error.source}" if missing else str(error))
    # Class folders are lists of the files that exist.
    listed = isinstance(dicts, ClassImages)
    on_disk = [] if listed else [str(path) for path in files_below(folder) if path.suffix in (".jpg", ".png")]
    loaded = _LoadedSplit(metadata, on_disk, dicts, findings)
    count, published = len(dicts), _published_images(name)
    if dicts and published is not None and count != published:
        findings.add(OTHER_COUNT, f"{count} instead of {published}")
    if not listed:
        _find_missing(loaded)
    return loaded


def _find_missing(loaded: _LoadedSplit) -> None:
    """Look for the files that annotations name, and for annotations of the files that exist."""
    if not loaded.dicts:
        return
    metadata, findings = loaded.metadata, loaded.findings
    images = {record["file_name"] for record in loaded.dicts}
    labels = dict.fromkeys(path for record in loaded.dicts for path, _ in label_checks(metadata, record))
    for problem, paths in ((problems.MISSING_IMAGE, sorted(images)), (problems.MISSING_LABEL, labels)):
        for path in paths:
            if not os.path.exists(path):
                loaded.missing.add(path)
                findings.add(problem, path)
    for problem, where in _annotation_problems(metadata, loaded.dicts):
        findings.add(problem, where)
    for path in loaded.on_disk:
        if path not in images:
            findings.add(UNANNOTATED, path)


def _published_images(name: str) -> int | None:
    """Number of images that a data set of this name has as published; None if it is unknown."""
    published = max((key for key in PUBLISHED_IMAGES if name.startswith(f"{key}_")), key=len, default=None)
    if published is None:
        return None
    return next((count for split, count in PUBLISHED_IMAGES[published].items() if split in name.split("_")), None)


def _annotation_problems(metadata: Metadata, dicts: Sequence[DatasetDict]) -> Iterator[Found]:
    """Problems of the instance annotations, and of the instances JSON that the evaluation of a panoptic set reads."""
    for record in dicts:
        for annotation in record.get("annotations", ()):
            segmentation = annotation["segmentation"]
            size = tuple(segmentation["size"]) if isinstance(segmentation, dict) else None
            if size not in (None, (record["height"], record["width"])):
                yield Found(problems.RLE_SIZE, f"{record['file_name']}: {size_text(size)}")
    if "pan_seg_file_name" not in dicts[0] or not metadata.get("json_file"):
        return
    path = metadata.json_file
    try:
        content: dict[str, Any] = json.loads(read_text(path))
        images = {image["id"] for image in content["images"]}
        categories = {annotation["category_id"] for annotation in content["annotations"]}
    except json.JSONDecodeError as error:
        yield Found(UNLOADABLE, f"{path}: not valid JSON ({error})")
        return
    except (KeyError, TypeError) as error:
        yield Found(UNLOADABLE, f"{path}: not COCO's instance format: {error!r}")
        return
    if lacking := [record["image_id"] for record in dicts if record["image_id"] not in images]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        yield Found(ABSENT_FROM_INSTANCES, f"{path}: {lacking[0]}{more}")
    if unknown := categories - metadata.thing_dataset_id_to_contiguous_id.keys():
        yield Found(problems.OUTSIDE_CLASSES, f"{path}: categories {few(unknown)}")


class OpenedFile(NamedTuple):
    """Height and width of a file's pixels (None if it is unreadable), and its problems."""

    size: tuple[int, ...] | None
    found: Sequence[Found]


Check = Callable[[str], OpenedFile]


def label_checks(metadata: Metadata, record: DatasetDict) -> Iterator[tuple[str, Check]]:
    """Paths of the label images of a dict, each with the function that opens and checks it."""
    if "sem_seg_file_name" in record:
        allowed = frozenset((*range(len(metadata.stuff_classes)), metadata.ignore_label))
        yield record["sem_seg_file_name"], partial(check_labels, allowed=allowed)
    if "pan_seg_file_name" in record:
        segments = record["segments_info"]
        areas = {segment["id"]: segment.get("area") for segment in segments}
        # In ADE20K, areas of stuff are those before things were pasted over it.
        pasted_over = "ade20k" in metadata.name
        hidden = [s["id"] for s in segments if pasted_over and not s["isthing"]]
        yield record["pan_seg_file_name"], partial(check_panoptic, listed=areas, hidden=hidden)
    if metadata.evaluator_type.startswith("cityscapes") and metadata.name.endswith("_val"):
        check = partial(check_labels, allowed=_CITYSCAPES_IDS, divisor=_CITYSCAPES_DIVISOR)
        for path in cityscapes.evaluation_labels(metadata, record):
            yield path, check


def check_image(path: str) -> OpenedFile:
    """Decode a photograph completely."""
    return OpenedFile(read_image(path).shape[:2], ())


def check_labels(path: str, allowed: Collection[int], divisor: int = 0) -> OpenedFile:
    """Check a label map.

    Args:
        path: The image.
        allowed: Ids that pixels may have.
        divisor: Value from which on ids are this times their class, plus a number; 0 if there are no such ids.
    """
    labels = read_label_map(path)
    found = np.unique(labels).astype(np.int64)
    if divisor:
        found = np.where(found >= divisor, found // divisor, found)
    outside = {*found.tolist()}.difference(allowed)
    return OpenedFile(labels.shape, [Found(problems.OUTSIDE_CLASSES, f"{path}: ids {few(outside)}")] if outside else ())


def check_panoptic(path: str, listed: Mapping[int, int | None], hidden: Collection[int] = ()) -> OpenedFile:
    """Compare a panoptic PNG with its JSON; see `compare_segments`."""
    ids = read_panoptic_ids(path)
    found = compare_segments(segment_areas(ids), listed, hidden)
    return OpenedFile(ids.shape, [Found(problem, f"{path}: {details}") for problem, details in found])


def _open_file(path: str, check: Check) -> OpenedFile:
    """Open and check one file. Runs in worker processes."""
    try:
        return check(path)
    except ImageReadError as error:
        problem = problems.UNREADABLE_IMAGE if check is check_image else problems.UNREADABLE_LABEL
        return OpenedFile(None, [Found(problem, str(error))])


def _open_files(all_loaded: Sequence[_LoadedSplit], workers: int) -> None:
    """Open every file once, and add its problems to all splits that have it."""
    checks: dict[str, Check] = {}
    for loaded in all_loaded:
        for record in loaded.dicts:
            found = {record["file_name"]: check_image, **dict(label_checks(loaded.metadata, record))}
            checks |= {path: check for path, check in found.items() if path not in loaded.missing}
    with processes(workers) as run_all:
        results = run_all(_open_file, checks.keys(), checks.values())
        progress = tqdm(results, "checking", len(checks), unit="file", mininterval=report_interval())
        opened = dict(zip(checks, progress, strict=True))
    for loaded in all_loaded:
        for record in loaded.dicts:
            _compare(loaded, record, opened)


def _compare(loaded: _LoadedSplit, record: DatasetDict, opened: Mapping[str, OpenedFile]) -> None:
    """Add the problems of the files of a dict, and compare their sizes."""
    findings, image = loaded.findings, record["file_name"]
    size = opened[image].size if image in opened else None
    annotated = (record["height"], record["width"]) if "height" in record else size
    if size and annotated and size != annotated:
        findings.add(problems.ANNOTATED_SIZE, f"{image}: {size_text(size)}, annotated {size_text(annotated)}")
    for path in (image, *(path for path, _ in label_checks(loaded.metadata, record))):
        if path not in opened:
            continue
        for problem, where in opened[path].found:
            findings.add(problem, where)
        labels = opened[path].size
        if size and labels and labels != size:
            findings.add(problems.LABEL_SIZE, f"{path}: {size_text(labels)}, image {size_text(size)}")


def render(checks: Sequence[SettingCheck]) -> str:
    """A table of all settings, and below it all problems; those that several settings share are listed once."""
    rows = []
    settings: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        row: list[Any] = [check.setting]
        for split, usable in (("train", check.can_train), ("val", check.can_evaluate)):
            row += [("yes" if usable else "NO"), check.images[split]] if split in check.images else ["", ""]
        rows.append(row)
        for kind, blocks in (("problem", True), ("note", False)):
            for split, findings in check.findings.items():
                for message in findings.messages(blocks=blocks):
                    settings.setdefault((kind, split, message), []).append(check.setting)
    table = tabulate(rows, ["setting", "can train", "images", "can evaluate", "images"])
    # Problems come before notes.
    ordered = sorted(settings.items(), key=lambda item: item[0][0], reverse=True)
    lines = [f"{kind} ({', '.join(names)}, {split}): {message}" for (kind, split, message), names in ordered]
    return "\n".join([table, *([""] if lines else []), *lines])
