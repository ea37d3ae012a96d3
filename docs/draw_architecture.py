#!/usr/bin/env python
"""Draw the diagram of docs/architecture.md, docs/pictures/architecture.png: `python docs/draw_architecture.py`."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PICTURE = Path(__file__).resolve().parent / "pictures" / "architecture.png"
INK, FAINT = "#1f2a36", "#6b7885"
BACKBONE, DECODER, QUERIES, RESULT, PLAIN = "#dbe9f6", "#e3f1df", "#fbe9d0", "#f1e0ef", "#eef0f2"
# Height of the picture in the units of the boxes, whose width is 100.
HEIGHT = 50


@dataclass(frozen=True)
class Box:
    """A box with a title and text below it; (x, y) is its lower left corner."""

    x: float
    y: float
    width: float
    height: float
    title: str
    text: str = ""
    color: str = PLAIN

    def draw(self, axes: Axes) -> None:
        """Draw the box and its text."""
        shape = FancyBboxPatch(
            (self.x, self.y), self.width, self.height, boxstyle="round,pad=0,rounding_size=0.8", fc=self.color, ec=INK
        )
        axes.add_patch(shape)
        middle = self.x + self.width / 2
        if not self.text:
            axes.text(middle, self.y + self.height / 2, self.title, ha="center", va="center", color=INK, weight="bold")
            return
        axes.text(middle, self.y + self.height - 1.1, self.title, ha="center", va="top", color=INK, weight="bold")
        axes.text(middle, self.y + self.height - 3.6, self.text, ha="center", va="top", color=INK, fontsize=8)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "") -> None:
    """Draw an arrow with a small label over its middle."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.5, label, ha="center", va="bottom", color=FAINT, fontsize=7.5)


def draw(axes: Axes) -> None:
    """Draw the network from left to right, with losses and post-processing below it."""
    boxes = {
        "image": Box(1, 27, 10, 12.5, "image", "mapper\naugment\nnormalise\npad to 32"),
        "pixel": Box(
            36,
            22,
            15,
            25,
            "pixel decoder",
            "6 layers of deformable\nattention over strides\n8, 16, 32;\nFPN step to stride 4",
            DECODER,
        ),
        "queries": Box(
            58,
            37,
            19,
            10,
            "transformer decoder",
            "200 learned queries, 9 layers:\nmasked cross-attention,\nself-attention, FFN",
            QUERIES,
        ),
        "masks": Box(58, 22, 19, 8, "masks", "query embedding ×\npixel embedding", QUERIES),
        "classes": Box(84, 37, 15, 10, "per query", "class logits [Q, K + 1]\nmask logits [Q, H/4, W/4]", QUERIES),
        "post": Box(
            60,
            3,
            39,
            8,
            "post-processing (inference)",
            "masks resized in strips\npanoptic_seg · instances · sem_seg",
            RESULT,
        ),
        "loss": Box(
            16,
            3,
            38,
            8,
            "matcher and criterion (training)",
            "Hungarian matching, then class, mask and dice losses\nof all 10 predictions at sampled points",
            RESULT,
        ),
    }
    for box in boxes.values():
        box.draw(axes)
    axes.text(
        23, 48, "D2DiNAT: neighborhood attention, alternating dilations 1 and d", ha="center", color=INK, fontsize=8
    )
    for level in range(4):
        bottom = 41 - 6.4 * level
        Box(15, bottom, 15, 5, f"res{level + 2}", f"stride {4 * 2**level}", BACKBONE).draw(axes)
        arrow(axes, (30, bottom + 2.5), (36, bottom + 2.5))
        if level:
            arrow(axes, (22.5, bottom + 6.4), (22.5, bottom + 5))
    arrow(axes, (11, 36), (15, 43))
    arrow(axes, (51, 41.5), (58, 41.5), "1/32, 1/16, 1/8")
    arrow(axes, (51, 26), (58, 26), "1/4")
    arrow(axes, (67.5, 37), (67.5, 30))
    axes.text(
        66.8,
        33,
        "the masks of each layer limit\nthe attention of the next",
        ha="right",
        va="center",
        color=FAINT,
        fontsize=7.5,
    )
    arrow(axes, (77, 41.5), (84, 41.5))
    arrow(axes, (77, 26), (86, 37))
    arrow(axes, (91.5, 37), (91.5, 11))
    axes.plot([91.5, 35], [15.5, 15.5], color=INK, linewidth=1)
    arrow(axes, (35, 15.5), (35, 11))


def main() -> None:
    """Draw and save."""
    figure, axes = plt.subplots(figsize=(12, 6), dpi=120)
    axes.set(xlim=(0, 100), ylim=(0, HEIGHT))
    axes.axis("off")
    draw(axes)
    figure.tight_layout(pad=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
