"""Pictures of receptive fields and of evaluations with other dilations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from .receptive_fields import LayerField, area_above, side_around

# Fractions of the maximum, and shares of the sum, that an effective receptive field is measured with.
THRESHOLDS, SHARES = (0.5, 0.1, 0.01), (0.5, 0.9, 0.99)
# Gradients below this fraction of the maximum are drawn like zeros.
_FLOOR = 1e-4


@dataclass(frozen=True)
class Fields:
    """Receptive fields of a network.

    Attributes:
        label: Name of the network.
        layers: Theoretical fields, layer by layer.
        effective: Effective fields [H, W] of the output maps, from fine to coarse; empty if only the theory is known.
    """

    label: str
    layers: Sequence[LayerField]
    effective: Sequence[Tensor] = ()

    def table(self) -> str:
        """Tables of the theoretical fields, and of the effective ones if they are known."""
        rows = [
            (
                *(layer.layer, layer.kernel_size or "", layer.dilation or ""),
                *map(_product, (layer.map_size, layer.extent, (len(layer.rows), len(layer.columns)))),
            )
            for layer in self.layers
        ]
        headers = ("layer", "kernel", "dilation", "map", "extent (pixels)", "rows x columns seen")
        parts = [self.label, tabulate(rows, headers=headers)]
        measured = [
            (
                number,
                *(side_around(field, share) for share in SHARES),
                *(f"{area_above(field, threshold):.1%}" for threshold in THRESHOLDS),
            )
            for number, field in enumerate(self.effective, start=1)
        ]
        if measured:
            sides = (f"{share:.0%} within (pixels)" for share in SHARES)
            areas = (f"above {threshold:.0%}" for threshold in THRESHOLDS)
            parts.append(tabulate(measured, headers=("output", *sides, *areas)))
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Contents of a JSON file."""
        return {
            "label": self.label,
            "theoretical": [layer.as_dict() for layer in self.layers],
            "effective": [
                {
                    "area_above": {str(threshold): area_above(field, threshold) for threshold in THRESHOLDS},
                    "side_around": {str(share): side_around(field, share) for share in SHARES},
                }
                for field in self.effective
            ],
        }


def _product(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def draw_fields(networks: Sequence[Fields], file: IO[bytes]) -> None:
    """Draw the theoretical height layer by layer, and below it a row of heat maps for each network, as PNG."""
    shown = [fields for fields in networks if fields.effective]
    columns = max([1, *(len(fields.effective) for fields in shown)])
    figure = Figure(figsize=(max(8.0, 2.8 * columns), 4.0 + 3.1 * len(shown)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + len(shown), columns, height_ratios=[1.25, *[1.0] * len(shown)])
    _draw_growth(figure.add_subplot(grid[0, :]), networks)
    for row, fields in enumerate(shown, start=1):
        for column, field in enumerate(fields.effective):
            axes = figure.add_subplot(grid[row, column])
            relative = (field / field.max().clamp(min=torch.finfo(field.dtype).tiny)).clamp(min=_FLOOR)
            axes.imshow(relative.log10().numpy(), cmap="inferno", vmin=torch.tensor(_FLOOR).log10().item(), vmax=0)
            axes.set_xticks([])
            axes.set_yticks([])
            share = SHARES[-1]
            axes.set_title(f"{fields.label}, output {column + 1}", fontsize=9)
            axes.set_xlabel(
                f"{share:.0%} within {side_around(field, share)} pixels, "
                f"{area_above(field, THRESHOLDS[-1]):.0%} above {THRESHOLDS[-1]:.0%}",
                fontsize=7.5,
            )
    if shown:
        figure.supxlabel(
            f"gradient of the centre of each output; black: {_FLOOR:.0e} of the maximum or less", fontsize=9
        )
    figure.savefig(file, format="png")


def _draw_growth(axes: Axes, networks: Sequence[Fields]) -> None:
    for fields in networks:
        heights = [layer.extent[0] for layer in fields.layers]
        style = "-" if fields.effective else "--"
        axes.plot(range(1, len(heights) + 1), heights, style, marker="o", markersize=3, label=fields.label)
    layers = networks[0].layers
    # The steps between levels are where the size of the map changes.
    for index in range(1, len(layers)):
        if layers[index].map_size != layers[index - 1].map_size:
            axes.axvline(index + 1, color="#dddddd", linewidth=1, zorder=0)
    axes.set_xlabel("layer; grey lines: tokenizer and steps to the next level")
    axes.set_ylabel("receptive field, pixels (height)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def draw_sweep(metrics: Mapping[str, Mapping[str, float]], file: IO[bytes]) -> None:
    """Draw metrics in percent for each setting of dilations, as PNG.

    Args:
        metrics: Metrics by their names, for each setting by its name.
        file: Open file to write to.
    """
    names = list(dict.fromkeys(name for of_setting in metrics.values() for name in of_setting))
    figure = Figure(figsize=(max(6.0, 1.3 * len(metrics)), 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in names:
        values = [of_setting.get(name, float("nan")) for of_setting in metrics.values()]
        axes.plot(range(len(values)), values, marker="o", label=name)
        for index, value in enumerate(values):
            axes.annotate(f"{value:.1f}", (index, value), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(metrics)), list(metrics), rotation=20, ha="right")
    axes.set_xlabel("dilations in evaluation")
    axes.set_ylabel("percent")
    highest = max((value for of_setting in metrics.values() for value in of_setting.values()), default=0.0)
    axes.set_ylim(0, max(1.0, 1.15 * highest))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, format="png")
