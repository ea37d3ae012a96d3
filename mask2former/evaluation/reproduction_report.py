"""The report of reproduced results: published beside measured numbers by table of the papers, and a chart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from dinat_common.files import atomic_write
from mask2former.evaluation.reproduction import (
    EVALUATIONS,
    GROUPS,
    Quantity,
    Record,
    compact,
    lacking_weights,
    write_records,
)
from mask2former.model_zoo import Group

MARKDOWN_NAME, CHART_NAME = "reproduction.md", "reproduction.png"
_TITLES: Mapping[Group, str] = {
    "classification": "Image classification",
    "detection": "Object detection and instance segmentation: Mask R-CNN and Cascade Mask R-CNN",
    "upernet": "Semantic segmentation: UPerNet",
    "mask2former": "Mask2Former",
}
_LONG: frozenset[Group] = frozenset({"mask2former"})  # groups whose models have different metrics: a row for each
_DIGITS_OF_HASH = 12
_PAPER_COLOR, _OUR_COLOR = "#b8bcc4", "#2f6fb2"
_BAR = 0.38  # height; a row has height 1
_ROW, _PANEL = 0.36, 0.9  # inches: height of a row, and of what surrounds the rows of a panel
_MOST_ROWS = 40  # in one column of panels


def write_report(records: Iterable[Record], folder: Path) -> None:
    """Write `reproduction.json`, `.md` and `.png` into a folder. Each file is either complete or not written."""
    found = {record.setting: record for record in records}
    ordered = [found[name] for name in EVALUATIONS if name in found]
    write_records(ordered, folder)
    with atomic_write(folder / MARKDOWN_NAME) as file:
        file.write(as_markdown(ordered))
    with atomic_write(folder / CHART_NAME, "wb") as file:
        draw_chart(ordered, file)


def as_markdown(records: Sequence[Record]) -> str:
    """The report: a table for each group with results, remarks, what has no result, and versions."""
    done = [record for record in records if record.status == "done"]
    parts = [
        "# Published results, reproduced",
        "Numbers are in percent. Images per second are those of one process and of the model alone; peak memory is GPU "
        "memory, or the memory of a process on a CPU. Config and checkpoint are the first digits of SHA-256 hashes.",
        tabulate(
            [_summary(group, done) for group in GROUPS],
            headers=("", "evaluated", "largest difference"),
            tablefmt="github",
            disable_numparse=True,
        ),
    ]
    if done:
        parts.append(f"![Results of the papers beside ours]({CHART_NAME})")
    for group, members in GROUPS.items():
        if of_group := [record for record in done if record.setting in members]:
            parts += [f"## {_TITLES[group]}", _table(group, of_group)]
    remarks = grouped((record.setting, (remark,)) for record in done for remark in record.remarks)
    others = grouped(
        (record.setting, (record.status, reason))
        for record in records
        if record.status != "done"
        for reason in record.obstacles or (record.reason,)
    )
    made_with = grouped((record.setting, (_made_with(record),)) for record in done)
    for title, table, headers in (
        ("Remarks", remarks, ("model", "remark")),
        ("Made with", made_with, ("model", "with")),
        ("Without a result", others, ("model", "", "reason")),
    ):
        if table:
            parts += [f"## {title}", tabulate(table, headers=headers, tablefmt="github", disable_numparse=True)]
    if addresses := lacking_weights(records):
        parts += ["Checkpoints that were not found are published here:", "\n".join(f"- `{url}`" for url in addresses)]
    return "\n\n".join(parts) + "\n"


def grouped(entries: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Rows of the names of all evaluations with the same content, and that content.

    Args:
        entries: Names of evaluations, each with a content.
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for name, content in entries:
        names.setdefault(content, []).append(name)
    return [(compact(found), *content) for content, found in names.items()]


def _made_with(record: Record) -> str:
    used = [f"{name} {version}" for name, version in record.versions.items()]
    if device := record.speed.get("device"):
        used.append(f"{record.speed.get('processes', 1)} x {device}")
    return ", ".join(used)


def _summary(group: Group, done: Sequence[Record]) -> tuple[str, str, str]:
    of_group = [record for record in done if record.setting in GROUPS[group]]
    differences = [
        (difference, f"{difference:+.2f} ({record.setting}, {quantity.label})")
        for record in of_group
        for quantity in EVALUATIONS[record.setting].quantities
        if (difference := record.difference(quantity)) is not None
    ]
    largest = max(differences, key=lambda item: abs(item[0]), default=(0, ""))[1]
    return group, f"{len(of_group)} of {len(GROUPS[group])}", largest


def _table(group: Group, records: Sequence[Record]) -> str:
    rows = [row for record in records for row in (_long_rows(record) if group in _LONG else [_wide_row(record)])]
    quantities = dict.fromkeys(
        quantity.label for record in records for quantity in EVALUATIONS[record.setting].quantities
    )
    if group in _LONG:
        headers = ["model", "metric", "paper", "ours", "difference", "scales"]
    else:
        headers = ["model", *(name for label in quantities for name in (f"{label}: paper", "ours", "difference"))]
    headers += ["images", "images/s", "peak memory", "finished", "config", "checkpoint"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _wide_row(record: Record) -> tuple[str, ...]:
    quantities = EVALUATIONS[record.setting].quantities
    return (record.setting, *(cell for quantity in quantities for cell in _numbers(record, quantity)), *_cells(record))


def _long_rows(record: Record) -> list[tuple[str, ...]]:
    evaluation = EVALUATIONS[record.setting]
    scales = _scales(record.multi_scale)
    if record.multi_scale != evaluation.augmented:
        scales += f" (paper: {_scales(evaluation.augmented)})"
    return [
        (record.setting, quantity.label, *_numbers(record, quantity), scales, *_cells(record))
        for quantity in evaluation.quantities
    ]


def _scales(multi: bool) -> str:
    return "multi" if multi else "single"


def _numbers(record: Record, quantity: Quantity) -> tuple[str, str, str]:
    """Published number, measured number and difference."""
    ours, difference = record.ours.get(quantity.label), record.difference(quantity)
    absent = "nothing to measure" if quantity.label in record.ours else "not evaluated"
    return (
        "none" if quantity.paper is None else f"{quantity.paper:.1f}",
        absent if ours is None else f"{ours:.2f}",
        "" if difference is None else f"{difference:+.2f}",
    )


def _cells(record: Record) -> tuple[str, ...]:
    """Cells of any evaluation; where there are two speeds, the second is that at several scales."""
    parts = [record.speed, *([record.speed_multi_scale] if record.speed_multi_scale else [])]
    speeds = [f"{part['images_per_second']:.3g}" for part in parts if "images_per_second" in part]
    memory = max((part["peak_memory_bytes"] for part in parts if "peak_memory_bytes" in part), default=None)
    return (
        str(record.images),
        " / ".join(speeds),
        "" if memory is None else f"{memory / 1e9:.2f} GB",
        record.finished,
        record.config_sha256[:_DIGITS_OF_HASH],
        record.checkpoint_sha256[:_DIGITS_OF_HASH],
    )


@dataclass(frozen=True)
class _Panel:
    """What the chart shows of one group: a row for each evaluation and number."""

    title: str
    rows: Sequence[tuple[Record, Quantity]]


def draw_chart(records: Sequence[Record], file: IO[bytes]) -> None:
    """Draw a pair of bars for each published or measured number, as PNG, in a panel for each group.

    Evaluations for which something is missing are left out. Where there is no number yet, the status is shown.
    """
    panels = []
    shown = [record for record in records if record.status != "missing"]
    for group, members in GROUPS.items():
        rows = [
            (record, quantity)
            for record in shown
            if record.setting in members
            for quantity in EVALUATIONS[record.setting].quantities
        ]
        if rows:
            panels.append(_Panel(_TITLES[group], rows))
    columns = _columns(panels)
    height = max((sum(map(_height, column)) for column in columns), default=1.0)
    figure = Figure(figsize=(9 * max(1, len(columns)), 0.5 + height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if not panels:
        figure.text(0.5, 0.5, "no results yet", ha="center", va="center")
    grid = figure.add_gridspec(1, max(1, len(columns)))
    axes = None
    for place, column in enumerate(columns):
        # An empty part keeps the rows of all columns equally high.
        spare = height - sum(map(_height, column))
        heights = [*map(_height, column), *([spare] if spare > 0.1 else [])]
        parts = grid[place].subgridspec(len(heights), 1, height_ratios=heights)
        for index, panel in enumerate(column):
            axes = figure.add_subplot(parts[index])
            _draw_panel(axes, panel)
    if axes is not None:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(file, format="png")


def _height(panel: _Panel) -> float:
    return _PANEL + _ROW * len(panel.rows)


def _columns(panels: Sequence[_Panel]) -> list[list[_Panel]]:
    """Panels in one column, or in the two columns that make the lowest chart."""
    if sum(len(panel.rows) for panel in panels) <= _MOST_ROWS or len(panels) < 2:
        return [list(panels)] if panels else []
    choices = [
        [[panel for panel, place in zip(panels, places, strict=True) if place == column] for column in (0, 1)]
        for places in product((0, 1), repeat=len(panels))
    ]
    return min(choices, key=lambda columns: max(sum(map(_height, column)) for column in columns))


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    positions = range(len(panel.rows))
    ours: list[Any] = [record.ours.get(quantity.label) for record, quantity in panel.rows]
    papers = [quantity.paper for _, quantity in panel.rows]
    for shift, values, color, label in (
        (-_BAR / 2, papers, _PAPER_COLOR, "paper"),
        (_BAR / 2, ours, _OUR_COLOR, "ours"),
    ):
        lengths = [value or 0 for value in values]
        axes.barh([position + shift for position in positions], lengths, _BAR, color=color, label=label)
    for position, (record, quantity), paper, value in zip(positions, panel.rows, papers, ours, strict=True):
        if paper is not None:
            axes.text(paper + 0.5, position - _BAR / 2, f"{paper:.1f}", va="center", fontsize=7, color="#555555")
        axes.text((value or 0) + 0.5, position + _BAR / 2, _label(record, quantity), va="center", fontsize=7)
    axes.set_yticks(
        list(positions), [f"{record.setting}  {quantity.label}" for record, quantity in panel.rows], fontsize=8
    )
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("percent", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(record: Record, quantity: Quantity) -> str:
    """Text beside a measured number."""
    _, ours, difference = _numbers(record, quantity)
    if record.status != "done":
        return record.status
    return f"{ours} ({difference})" if difference else ours
