"""Check the data sets of settings: what loads, what is there, and with `full` what is in every file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from tqdm import tqdm

from mask2former.data.datasets import MissingDatasetError, dataset_metadata
from mask2former.data.datasets.registry import DatasetDict
from mask2former.data.published.findings import Finding, SettingReport
from mask2former.data.published.inspect import OTHER_AREA, Inspection, Task, run
from mask2former.data.published.tasks import instance_problems, label_tasks
from mask2former.model_zoo import SETTINGS
from mask2former.utils.parallel import processes, report_interval

SPLITS = ("train", "val")
# Of the published data sets.
PUBLISHED_IMAGES: Mapping[str, Mapping[str, int]] = {
    "coco": {"train": 118287, "val": 5000},
    "ade20k": {"train": 20210, "val": 2000},
    "cityscapes": {"train": 2975, "val": 500},
}
# Names in the settings' configs; {} is the split.
_NAMES = {
    "coco-panoptic": {"train": "coco_2017_train_panoptic", "val": "coco_2017_val_panoptic_with_sem_seg"},
    "coco-instance": "coco_2017_{}",
    "ade20k-panoptic": "ade20k_panoptic_{}",
    "ade20k-instance": "ade20k_instance_{}",
    "ade20k-semantic": "ade20k_sem_seg_{}",
    "cityscapes-panoptic": "cityscapes_fine_panoptic_{}",
    "cityscapes-instance": "cityscapes_fine_instance_seg_{}",
    "cityscapes-semantic": "cityscapes_fine_sem_seg_{}",
}
# Of many files of one kind, a message names these.
_NAMED = 3
# They leave training and evaluation as they are, and may well be in published files.
_HARMLESS = (OTHER_AREA,)


@dataclass
class _Loaded:
    """A data set as far as it could be loaded, and problem -> what it was found in."""

    metadata: Metadata
    split: str
    on_disk: list[str] = field(default_factory=list)
    dicts: list[DatasetDict] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many have annotations, or where these can't be loaded, how many there are."""
        return len(self.dicts) or len(self.on_disk)

    def add(self, problem: str, where: str) -> None:
        self.problems.setdefault(problem, []).append(where)

    def findings(self) -> Iterator[Finding]:
        for problem, places in self.problems.items():
            named = "; ".join(places[:_NAMED]) + ("; ..." if len(places) > _NAMED else "")
            counted = f"{problem} ({len(places)}): " if problem else ""
            yield Finding(self.split, counted + named, blocks=problem not in _HARMLESS)
        for note in self.notes:
            yield Finding(self.split, note, blocks=False)


def dataset_name(setting: str, split: str) -> str:
    """The name in the catalogs of what a setting trains on ("train") or is evaluated on ("val")."""
    names = _NAMES[setting]
    return names.format(split) if isinstance(names, str) else names[split]


def check_setting(
    setting: str, *, full: bool = False, workers: int = 1, splits: Sequence[str] = SPLITS
) -> SettingReport:
    """Check the files of one setting under DETECTRON2_DATASETS; see `check_settings`."""
    (report,) = check_settings([setting], full=full, workers=workers, splits=splits)
    return report


def check_settings(
    settings: Sequence[str], *, full: bool = False, workers: int = 1, splits: Sequence[str] = SPLITS
) -> list[SettingReport]:
    """Check the files of settings under DETECTRON2_DATASETS.

    The annotations are loaded as training and evaluation load them, and every file that they name has to exist.

    Args:
        settings: names in `mask2former.model_zoo.SETTINGS`.
        full: also open every file once, and compare labels with the images, with each other, and with the table of
            classes.
        workers: number of processes with `full`.
        splits: of "train" and "val".

    Raises:
        ValueError: there is no such setting or split.
    """
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        raise ValueError(f"unknown setting {unknown[0]!r}, expected one of {', '.join(SETTINGS)}")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"unknown split {unknown[0]!r}, expected one of {', '.join(SPLITS)}")
    keys = [(setting, split) for setting in settings for split in splits]
    loaded = {key: _load(*key) for key in keys}
    if full:
        _open_files(list(loaded.values()), workers)
    return [
        SettingReport(
            setting,
            {split: loaded[setting, split].images for split in splits},
            tuple(finding for split in splits for finding in loaded[setting, split].findings()),
        )
        for setting in settings
    ]


def _load(setting: str, split: str) -> _Loaded:
    """Load a data set, look whether all files that it names exist, and count."""
    name = dataset_name(setting, split)
    loaded = _Loaded(dataset_metadata(name), split)
    loaded.on_disk = _images_on_disk(loaded.metadata)
    try:
        loaded.dicts = DatasetCatalog.get(name)
    except MissingDatasetError as error:
        loaded.add("", f"missing: {', '.join(error.paths)}. {error.source}" if error.paths else str(error))
        return loaded
    except ValueError as error:
        loaded.add("", str(error))
        return loaded
    known: dict[str, bool] = {}
    for record in loaded.dicts:
        for path in (record["file_name"], *(task.path for task in label_tasks(loaded.metadata, record))):
            if not known.setdefault(path, os.path.exists(path)):
                loaded.add("missing", path)
    for problem, where in instance_problems(loaded.metadata, loaded.dicts):
        loaded.add(problem, where)
    _count(loaded, PUBLISHED_IMAGES[SETTINGS[setting].dataset][split])
    return loaded


def _count(loaded: _Loaded, published: int) -> None:
    count = len(loaded.dicts)
    if count != published:
        loaded.notes.append(f"{count} images, published are {published}")
    with_labels = {record["file_name"] for record in loaded.dicts}
    without = [path for path in loaded.on_disk if path not in with_labels]
    if without:
        loaded.notes.append(f"{len(without)} images that the annotations don't have, such as {without[0]}")


def _images_on_disk(metadata: Metadata) -> list[str]:
    folder = Path(metadata.get("image_root") or metadata.image_dir)
    return sorted(str(path) for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


def _open_files(all_loaded: Sequence[_Loaded], workers: int) -> None:
    """Open every file once, however many settings have it, and add what is wrong to all that do."""
    tasks: dict[str, Task] = {}
    for loaded in all_loaded:
        missing = set(loaded.problems.get("missing", ()))
        for record in loaded.dicts:
            for task in label_tasks(loaded.metadata, record, with_image=True):
                if task.path not in missing:
                    tasks[task.path] = task
    with processes(workers) as run_all:
        results = run_all(run, tasks.values())
        progress = tqdm(results, "checking", len(tasks), unit="file", mininterval=report_interval())
        inspections = dict(zip(tasks, progress, strict=True))
    for loaded in all_loaded:
        for record in loaded.dicts:
            _compare(loaded, record, inspections)


def _compare(loaded: _Loaded, record: DatasetDict, inspections: Mapping[str, Inspection]) -> None:
    image = inspections.get(record["file_name"])
    size = image.size if image else None
    annotated = (record.get("height"), record.get("width"))
    if size and None not in annotated and size != annotated:
        loaded.add("image of another size than annotated", f"{record['file_name']}: {size}, annotated {annotated}")
    for task in label_tasks(loaded.metadata, record, with_image=True):
        inspection = inspections.get(task.path)
        if inspection is None:
            continue
        for problem, details in inspection.problems.items():
            loaded.add(problem, details if task.path in details else f"{task.path}: {details}")
        if size and inspection.size and inspection.size != size:
            loaded.add("labels of another size than the image", f"{task.path}: {inspection.size}, image {size}")
