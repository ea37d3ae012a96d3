"""What the evaluation of a published setting gave."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mask2former.model_zoo import SETTINGS

# Metric of a paper -> task and metrics of an evaluation, the first that it has.
_WHERE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "PQ": ("panoptic_seg", ("PQ",)),
    "AP": ("segm", ("AP",)),
    "mIoU": ("sem_seg", ("mIoU", "IoU")),  # Cityscapes' own scripts call the mean over classes IoU
}


@dataclass(frozen=True)
class Record:
    """The state of one setting.

    Attributes:
        setting: its name.
        status: whether there is a result.
        reason: why there is none.
        multi_scale: whether augmentation at test time took part.
        ours: metric -> percent; None: the evaluation had nothing to measure.
        config_sha256: of the resolved config without paths.
        checkpoint: name of the file.
        checkpoint_sha256: of its content.
        images: how many were evaluated.
        remarks: what differs from the published data.
        speed: what `speed.json` of the evaluation says; empty where it is missing.
        versions: library -> version.
        finished: time, ISO 8601.
    """

    setting: str
    status: Literal["done", "missing", "failed", "open"]
    reason: str = ""
    multi_scale: bool = False
    ours: Mapping[str, float | None] = field(default_factory=dict)
    config_sha256: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    images: int = 0
    remarks: Sequence[str] = ()
    speed: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""

    def same_run(self, other: "Record") -> bool:
        """Whether both are about one checkpoint under one config on as many images, so that results are the same."""
        keys = ("config_sha256", "checkpoint_sha256", "images")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def difference(self, metric: str) -> float | None:
        """Ours minus the paper's, in percent points; None where there is no result."""
        ours = self.ours.get(metric)
        return None if ours is None else ours - SETTINGS[self.setting].published[metric]


def read_results(output: Path, setting: str, *, multi_scale: bool) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Read what an evaluation of train_net.py left.

    Args:
        output: its OUTPUT_DIR.
        setting: a name in `mask2former.model_zoo.SETTINGS`.
        multi_scale: take the results of augmentation at test time.

    Returns:
        The metrics that the paper reports, and what `speed.json` says (empty where there is none).

    Raises:
        ValueError: the evaluation left no such metric; the message names file and metric.
    """
    path = output / "inference" / "metrics.json"
    name, tasks = next(iter(read_object(path).items()), ("", {}))
    ours = {}
    for metric in SETTINGS[setting].published:
        task, keys = _WHERE[metric]
        task += "_TTA" if multi_scale else ""
        found = tasks.get(task, {})
        key = next((key for key in keys if key in found), None)
        if key is None:
            raise ValueError(f"{path}: expected {metric}, as {' or '.join(keys)} under {task!r}")
        ours[metric] = found[key]
    speed_file = output / "inference" / "speed.json"
    speeds = read_object(speed_file) if speed_file.is_file() else {}
    return ours, speeds.get(f"{name}_TTA" if multi_scale else name) or {}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object")
    return content
