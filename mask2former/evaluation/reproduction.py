"""The published settings: what can be evaluated here, and how the results compare with the papers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from dinat_common.files import atomic_write, read_text, write_json
from mask2former.data.published import SettingCheck, check_settings
from mask2former.evaluation.metric import EvaluationError
from mask2former.model_zoo import SETTINGS, Setting

JSON_NAME, MARKDOWN_NAME, CHART_NAME = "reproduction.json", "reproduction.md", "reproduction.png"
_VERSION = 1
# The published file, and what tools/convert_weights.py makes of it.
_ENDINGS = (".pth", ".safetensors")
# Where the metrics of the papers are in our results: task, and possible names.
_METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "PQ": ("panoptic_seg", ("PQ",)),
    "AP": ("segm", ("AP",)),
    "mIoU": ("sem_seg", ("mIoU", "IoU")),  # Cityscapes' own scripts call the mean over classes IoU
}
_HEADERS = (
    *("setting", "metric", "paper", "ours", "difference", "scales", "images", "images/s", "peak memory"),
    *("config", "checkpoint"),
)
_DIGITS_OF_HASH = 12
_PAPER_COLOR, _OUR_COLOR = "#b8bcc4", "#2f6fb2"
_BAR = 0.38  # height; a metric has height 1


@dataclass(frozen=True)
class Plan:
    """What is available for one setting.

    Attributes:
        setting: The setting.
        images: Number of images to evaluate.
        checkpoint: File of the weights; None if it is missing.
        obstacles: Reasons why the setting can't be evaluated.
        remarks: Differences from the published data that do not prevent an evaluation.
    """

    setting: Setting
    images: int
    checkpoint: Path | None
    obstacles: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the setting can be evaluated."""
        return not self.obstacles


@dataclass(frozen=True)
class Record:
    """The state of one setting.

    Attributes:
        setting: Name of the setting.
        status: Whether there is a result.
        reason: Reason why there is none.
        multi_scale: Whether test-time augmentation was used.
        ours: Percent by metric of the paper; None if there was nothing to measure.
        config_sha256: Hash of the resolved config without paths.
        checkpoint: Name of the checkpoint file.
        checkpoint_sha256: Hash of its content.
        images: Number of evaluated images.
        remarks: Differences from the published data.
        speed: Entry of the evaluation's `speed.json`; may be empty.
        versions: Versions of libraries.
        finished: Time of the result, ISO 8601.
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
        """Whether both are about the same checkpoint, config and number of images, so that results are equal."""
        keys = ("config_sha256", "checkpoint_sha256", "images")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def difference(self, metric: str) -> float | None:
        """Our result minus the paper's, in percentage points; None if there is no result."""
        ours = self.ours.get(metric)
        return None if ours is None else ours - SETTINGS[self.setting].published[metric]


def plan_settings(settings: Sequence[Setting], weights: Path) -> list[Plan]:
    """Look for the validation data of settings, under DETECTRON2_DATASETS, and for their checkpoints.

    Args:
        settings: Settings of `mask2former.model_zoo`.
        weights: Folder of the checkpoints, under their published names with the ending .pth or .safetensors.
    """
    checks = check_settings([setting.name for setting in settings], splits=("val",))
    return [_plan(setting, check, weights) for setting, check in zip(settings, checks, strict=True)]


def _plan(setting: Setting, data: SettingCheck, weights: Path) -> Plan:
    paths = [weights / Path(setting.checkpoint).with_suffix(ending).name for ending in _ENDINGS]
    checkpoint = next((path for path in paths if path.is_file()), None)
    obstacles = [f"data: {message}" for message in data.findings["val"].messages(blocks=True)]
    if checkpoint is None:
        expected = f"{setting.checkpoint} (or {_ENDINGS[1]})"
        obstacles.append(f"weights: no {expected} in {weights}; published at {setting.checkpoint_url}")
    remarks = data.findings["val"].messages(blocks=False)
    return Plan(setting, data.images["val"], checkpoint, tuple(obstacles), tuple(remarks))


def read_results(output: Path, setting: str, *, multi_scale: bool) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Read the results of an evaluation by train_net.py.

    Args:
        output: OUTPUT_DIR of the evaluation.
        setting: Name of the setting.
        multi_scale: Whether to read the results with test-time augmentation.

    Returns:
        The metrics that the paper reports, and the entry of `speed.json` (empty if there is none).

    Raises:
        EvaluationError: A metric is missing; the message names file and metric.
    """
    path, speed_file = output / "inference" / "metrics.json", output / "inference" / "speed.json"
    suffix = "_TTA" if multi_scale else ""
    name, tasks = next(iter(_read_object(path).items()), ("", {}))
    ours = {}
    for metric in SETTINGS[setting].published:
        task, keys = _METRICS[metric]
        found = tasks.get(task + suffix, {})
        key = next((key for key in keys if key in found), None)
        if key is None:
            raise EvaluationError(f"{path}: expected {metric}, as {' or '.join(keys)} under {task + suffix!r}")
        ours[metric] = found[key]
    speeds = _read_object(speed_file) if speed_file.is_file() else {}
    return ours, speeds.get(name + suffix) or {}


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records that `write_report` left in a folder, by setting; empty if there are no readable ones."""
    try:
        content = _read_object(folder / JSON_NAME)
    except (OSError, ValueError):
        return {}
    if content.get("version") != _VERSION:
        return {}
    names = {entry.name for entry in fields(Record)}
    entries = ({key: value for key, value in entry.items() if key in names} for entry in content["settings"])
    return {entry["setting"]: Record(**entry) for entry in entries if entry["setting"] in SETTINGS}


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: expected an object")
    return content


def write_report(records: Iterable[Record], folder: Path) -> None:
    """Write `reproduction.json`, `.md` and `.png` into a folder. Each file is either complete or not written."""
    records = list(records)
    entries = []
    for record in records:
        published = SETTINGS[record.setting].published
        comparison = {
            metric: {"paper": paper, "ours": record.ours.get(metric), "difference": record.difference(metric)}
            for metric, paper in published.items()
        }
        entries.append({**asdict(record), "comparison": comparison})
    write_json(folder / JSON_NAME, {"version": _VERSION, "settings": entries}, indent=2)
    with atomic_write(folder / MARKDOWN_NAME) as file:
        file.write(_as_markdown(records))
    with atomic_write(folder / CHART_NAME, "wb") as file:
        draw_chart(records, file)


def _as_markdown(records: Sequence[Record]) -> str:
    done = [record for record in records if record.status == "done"]
    rows = [row for record in done for row in _rows(record)]
    parts = [
        "# Published results, reproduced",
        "Numbers are in percent. Images per second are those of one process and of the model alone; peak memory is GPU "
        "memory, or the memory of a process on a CPU. Config and checkpoint are the first digits of SHA-256 hashes.",
        tabulate(rows, headers=_HEADERS, tablefmt="github", disable_numparse=True),
    ]
    if done:
        parts.append(f"![Results of the papers beside ours]({CHART_NAME})")
    remarks = [(record.setting, remark) for record in done for remark in record.remarks]
    others = [(record.setting, record.status, record.reason) for record in records if record.status != "done"]
    made_with = []
    for record in done:
        used = [f"{name} {version}" for name, version in record.versions.items()]
        if device := record.speed.get("device"):
            used.append(f"{record.speed.get('processes', 1)} x {device}")
        made_with.append((record.setting, record.finished, ", ".join(used)))
    for title, table, headers in (
        ("Remarks", remarks, ("setting", "remark")),
        ("Without a result", others, ("setting", "", "reason")),
        ("Made with", made_with, ("setting", "when", "with")),
    ):
        if table:
            parts += [f"## {title}", tabulate(table, headers=headers, tablefmt="github")]
    return "\n\n".join(parts) + "\n"


def _rows(record: Record) -> list[tuple[str, ...]]:
    setting = SETTINGS[record.setting]
    scales = "multi" if record.multi_scale else "single"
    if record.multi_scale != setting.multi_scale:
        scales += f" (paper: {'multi' if setting.multi_scale else 'single'})"
    speed, memory = record.speed.get("images_per_second"), record.speed.get("peak_memory_bytes")
    rest = (
        scales,
        str(record.images),
        "" if speed is None else f"{speed:.3g}",
        "" if memory is None else f"{memory / 1e9:.2f} GB",
        record.config_sha256[:_DIGITS_OF_HASH],
        record.checkpoint_sha256[:_DIGITS_OF_HASH],
    )
    rows = []
    for metric, paper in setting.published.items():
        ours, difference = record.ours.get(metric), record.difference(metric)
        numbers = ("nothing to measure", "") if ours is None else (f"{ours:.2f}", f"{difference:+.2f}")
        rows.append((record.setting, metric, f"{paper:.1f}", *numbers, *rest))
    return rows


def draw_chart(records: Sequence[Record], file: IO[bytes]) -> None:
    """Draw a pair of bars for each setting and metric, as PNG; without a result, the status is shown instead."""
    rows = [
        (record, metric, paper) for record in records for metric, paper in SETTINGS[record.setting].published.items()
    ]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = range(len(rows))
    ours = [record.ours.get(metric) for record, metric, _ in rows]
    for shift, values, color, label in (
        (-_BAR / 2, [paper for _, _, paper in rows], _PAPER_COLOR, "paper"),
        (_BAR / 2, [value or 0 for value in ours], _OUR_COLOR, "ours"),
    ):
        axes.barh([position + shift for position in positions], values, _BAR, color=color, label=label)
    for position, (record, metric, paper), value in zip(positions, rows, ours, strict=True):
        axes.text(paper + 0.5, position - _BAR / 2, f"{paper:.1f}", va="center", fontsize=7, color="#555555")
        absent = "nothing to measure" if record.status == "done" else record.status
        text = absent if value is None else f"{value:.2f} ({record.difference(metric):+.2f})"
        axes.text((value or 0) + 0.5, position + _BAR / 2, text, va="center", fontsize=7)
    axes.set_yticks(list(positions), [f"{record.setting}  {metric}" for record, metric, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.savefig(file, format="png")
