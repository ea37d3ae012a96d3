"""The report of all settings: a JSON file from which an interrupted run goes on, a table, and a chart."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from tabulate import tabulate

from mask2former.evaluation.reproduction.chart import draw_chart
from mask2former.evaluation.reproduction.record import Record, read_object
from mask2former.model_zoo import SETTINGS
from mask2former.utils.files import atomic_write, write_json

JSON_NAME, MARKDOWN_NAME, CHART_NAME = "reproduction.json", "reproduction.md", "reproduction.png"
_VERSION = 1
_HEADERS = (
    *("setting", "metric", "paper", "ours", "difference", "scales", "images", "images/s", "peak memory"),
    *("config", "checkpoint"),
)
_DIGITS_OF_HASH = 12


def read_records(folder: Path) -> dict[str, Record]:
    """The records that `write_report` left in a folder, by setting; none where there are none that can be read."""
    try:
        content = read_object(folder / JSON_NAME)
    except (OSError, ValueError):
        return {}
    if content.get("version") != _VERSION:
        return {}
    names = {entry.name for entry in fields(Record)}
    entries = ({key: value for key, value in entry.items() if key in names} for entry in content["settings"])
    return {entry["setting"]: Record(**entry) for entry in entries if entry["setting"] in SETTINGS}


def write_report(records: Iterable[Record], folder: Path) -> None:
    """Write `reproduction.json`, `.md` and `.png` into a folder, each whole or not at all."""
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
        file.write(as_markdown(records))
    with atomic_write(folder / CHART_NAME, "wb") as file:
        draw_chart(records, file)


def as_markdown(records: Sequence[Record]) -> str:
    """Tables of the results, of what has none, and of the versions."""
    done = [record for record in records if record.status == "done"]
    rows = [row for record in done for row in _rows(record)]
    parts = [
        "# Published results, reproduced",
        "Numbers are in percent. Images per second are those of one process and count the model alone; peak memory is "
        "that of a GPU, or of a process on a CPU. Config and checkpoint are the first digits of SHA-256 sums.",
        tabulate(rows, headers=_HEADERS, tablefmt="github", disable_numparse=True),
    ]
    if done:
        parts.append(f"![The papers' results beside ours]({CHART_NAME})")
    remarks = [(record.setting, remark) for record in done for remark in record.remarks]
    if remarks:
        parts += ["## Remarks", tabulate(remarks, headers=("setting", "remark"), tablefmt="github")]
    others = [(record.setting, record.status, record.reason) for record in records if record.status != "done"]
    if others:
        parts += ["## Without a result", tabulate(others, headers=("setting", "", "reason"), tablefmt="github")]
    if done:
        parts += ["## Made with", tabulate(_versions(done), headers=("setting", "when", "with"), tablefmt="github")]
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


def _versions(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    rows = []
    for record in records:
        device = record.speed.get("device")
        used = [f"{name} {version}" for name, version in record.versions.items()]
        if device:
            used.append(f"{record.speed.get('processes', 1)} x {device}")
        rows.append((record.setting, record.finished, ", ".join(used)))
    return rows
