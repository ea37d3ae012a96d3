"""A chart of the papers' results beside ours."""

from collections.abc import Sequence
from typing import IO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mask2former.evaluation.reproduction.record import Record
from mask2former.model_zoo import SETTINGS

_PAPER, _OURS = "#b8bcc4", "#2f6fb2"
_BAR = 0.38  # height, of 1 for a metric


def draw_chart(records: Sequence[Record], file: IO[bytes]) -> None:
    """Draw a pair of bars for every setting and metric, as a PNG; the status stands where there is no result."""
    rows = [
        (record, metric, paper) for record in records for metric, paper in SETTINGS[record.setting].published.items()
    ]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = range(len(rows))
    axes.barh([p - _BAR / 2 for p in positions], [paper for _, _, paper in rows], _BAR, color=_PAPER, label="paper")
    ours = [record.ours.get(metric) for record, metric, _ in rows]
    axes.barh([p + _BAR / 2 for p in positions], [value or 0 for value in ours], _BAR, color=_OURS, label="ours")
    for position, (record, metric, paper), value in zip(positions, rows, ours, strict=True):
        axes.text(paper + 0.5, position - _BAR / 2, f"{paper:.1f}", va="center", fontsize=7, color="#555555")
        difference = record.difference(metric)
        absent = "nothing to measure" if record.status == "done" else record.status
        text = absent if value is None else f"{value:.2f} ({difference:+.2f})"
        axes.text((value or 0) + 0.5, position + _BAR / 2, text, va="center", fontsize=7)
    axes.set_yticks(list(positions), [f"{record.setting}  {metric}" for record, metric, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.savefig(file, format="png")
