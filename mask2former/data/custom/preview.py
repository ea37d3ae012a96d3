"""Draw labelled data: sample images with their labels, and how often each class occurs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as mask_util
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from dinat_common.files import atomic_write
from mask2former.data.classes import ClassTable
from mask2former.data.coco_format import to_rle
from mask2former.data.custom.inspection import InspectedSplit, Inspection
from mask2former.data.custom.source import LabelledImage, Split, SplitContent
from mask2former.data.custom.training_files import combine, contiguous_labels, void_label
from mask2former.data.datasets.registry import Category
from mask2former.data.image_io import read_image, read_label_map, read_panoptic_ids
from mask2former.prediction.drawing import (
    Label,
    contact_sheet,
    draw_instances,
    draw_labels,
    draw_panoptic,
    draw_semantic,
    enlarged,
)
from mask2former.prediction.text import TextLine
from mask2former.utils.label_images import write_png

_COLORS: Mapping[Split, str] = {"train": "#2f6fb2", "val": "#c4432b"}
# Images that are longer than this, relative to their other side, get white beside them.
_LONGEST = 4.0
# Widest name of a class, as a multiple of the letters' height.
_NAME_WIDTH = 24
# Of more classes, only the most frequent and the rarest are shown.
_MOST = 80


def write_preview(inspection: Inspection, folder: Path, count: int, seed: int) -> list[Path]:
    """Write `samples_SPLIT.png` and `classes.png`.

    Args:
        inspection: The inspected data.
        folder: Folder for the files.
        count: Number of images on a contact sheet; every class is on one of them if there is room.
        seed: Seed of the random choice of images.

    Returns:
        The files.
    """
    written = []
    for name, inspected in inspection.splits.items():
        if chosen := choose(inspected, count, seed):
            pictures = [draw(inspected.content, inspected.content.images[i]) for i in chosen]
            columns = int(np.ceil(np.sqrt(len(pictures))))
            sheet = contact_sheet(_same_shape(pictures), columns, width=640 * columns)
            written.append(write_png(folder / f"samples_{name}.png", sheet))
    written.append(folder / "classes.png")
    _draw_histograms(inspection, written[-1])
    return written


def choose(inspected: InspectedSplit, count: int, seed: int) -> list[int]:
    """Positions of images without a blocking problem; first those with classes not chosen yet, the rarest first."""
    sound = [i for i, scan in enumerate(inspected.scans) if not any(problem.blocks for problem, _ in scan.found)]
    order = [sound[i] for i in np.random.RandomState(seed).permutation(len(sound))]
    images = inspected.images()
    chosen: dict[int, None] = {}
    seen: set[int] = set()
    for category in sorted(images, key=lambda c: (images[c], c)):
        candidates = (i for i in order if category in inspected.scans[i].segments)
        if category not in seen and (first := next(candidates, None)) is not None:
            chosen[first] = None
            seen |= inspected.scans[first].segments.keys()
    return [*chosen, *(i for i in order if i not in chosen)][:count]


def draw(content: SplitContent, labelled: LabelledImage) -> NDArray[np.uint8]:
    """Draw an image with its labels on it; RGB [H, W, 3]."""
    image = read_image(labelled.path, value_range=content.source.value_range)
    format, categories = content.source.format, content.categories
    classes = ClassTable([c.name for c in categories], [c.color for c in categories])
    position = {category.id: i for i, category in enumerate(categories)}
    if format == "coco_instance":
        size = image.shape[0], image.shape[1]
        masks = [mask_util.decode(to_rle(a["segmentation"], size)).astype(bool) for a in labelled.annotations]
        stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
        return draw_instances(image, stacked, [position[a["category_id"]] for a in labelled.annotations], None, classes)
    if format == "class_folders":
        return _draw_class(image, categories[position[labelled.annotations[0]["category_id"]]])
    if labelled.label is None:
        raise ValueError(f"{labelled.path}: no label to draw")
    if format == "semantic":
        labels = contiguous_labels(content.code.read(labelled.label)[0], categories)
        return draw_semantic(image, labels, classes, void_label(len(categories)))
    if format == "coco_panoptic":
        ids, segments = read_panoptic_ids(labelled.label), labelled.annotations
    else:
        numbers = read_label_map(labelled.numbers or "")
        ids, segments = combine(content.code.read(labelled.label)[0], numbers, categories)
    infos: list[dict[str, Any]] = [
        {
            "id": segment["id"],
            "category_id": position[segment["category_id"]],
            "isthing": categories[position[segment["category_id"]]].isthing,
        }
        for segment in segments
    ]
    return draw_panoptic(image, ids, infos, classes)


def _draw_class(image: NDArray[np.uint8], category: Category) -> NDArray[np.uint8]:
    """The image with the name of its class at its upper edge; RGB."""
    picture = enlarged(image)
    return draw_labels(picture, [Label(category.name, category.color, (0, 0), 0.0)])


def _same_shape(pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Pad pictures with white to one shape, so that tall ones do not fill the sheet."""
    shape = float(np.clip(np.median([p.shape[0] / p.shape[1] for p in pictures]), 1 / _LONGEST, _LONGEST))
    padded = []
    for picture in pictures:
        height, width = picture.shape[:2]
        canvas_width = max(width, round(height / shape))
        gap = max(4, canvas_width // 100)
        canvas = np.full((height + gap, canvas_width + gap, 3), 255, np.uint8)
        canvas[:height, (canvas_width - width) // 2 :][:, :width] = picture
        padded.append(canvas)
    return padded


def _draw_histograms(inspection: Inspection, path: Path) -> None:
    names = {category.id: category.name for category in inspection.categories}
    segments = inspection.train.total("segments")
    order = sorted(names, key=lambda c: (-segments[c], names[c]))
    if len(order) > _MOST:
        order = [*order[: _MOST // 2], *order[-_MOST // 2 :]]
    counts: dict[str, dict[Split, Counter[int]]] = {
        "images with the class": {name: split.images() for name, split in inspection.splits.items()}
    }
    if inspection.train.content.source.format != "class_folders":
        counts["segments"] = {name: split.total("segments") for name, split in inspection.splits.items()}
        counts["pixels in %"] = {name: _percent(split.total("pixels")) for name, split in inspection.splits.items()}
    figure = Figure(figsize=(13, max(3.2, 1.4 + 0.24 * len(order))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(counts) + 1, width_ratios=[1] * len(counts) + [1.1])
    for axes, (title, of_splits) in zip(all_axes, counts.items(), strict=False):
        _draw_bars(axes, title, of_splits, order)
        axes.set_yticks(range(len(order)), [""] * len(order))
    _write_names(all_axes[0], [names[category] for category in order])
    _draw_sizes(all_axes[-1], inspection)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")


def _percent(pixels: Counter[int]) -> Counter[int]:
    """Shares of the sum in percent."""
    return Counter({c: 100 * n / max(1, pixels.total()) for c, n in pixels.items()})


def _write_names(axes: Axes, names: Sequence[str]) -> None:
    """Write names beside the bars; as pictures, because matplotlib's fonts have few scripts and "$" starts formulas."""
    size = round(10 / 72 * axes.figure.dpi)  # matplotlib's 10 points
    for place, name in enumerate(names):
        if line := TextLine(name, size, _NAME_WIDTH * size):
            picture = OffsetImage(line.image((0, 0, 0)), dpi_cor=False)
            box = AnnotationBbox(
                picture,
                (-0.03, place),
                xycoords=("axes fraction", "data"),
                box_alignment=(1, 0.5),
                frameon=False,
                pad=0,
            )
            axes.add_artist(box)


def _draw_bars(axes: Axes, title: str, of_splits: Mapping[Split, Counter[int]], order: Sequence[int]) -> None:
    thickness = 0.8 / len(of_splits)
    for number, (split, counts) in enumerate(of_splits.items()):
        heights = [counts[category] for category in order]
        places = np.arange(len(order)) + (number - (len(of_splits) - 1) / 2) * thickness
        bars = axes.barh(places, heights, thickness, color=_COLORS[split], label=split)
        axes.bar_label(bars, [f"{height:,.3g}" if height < 1000 else f"{height:,}" for height in heights], padding=2)
    axes.set_title(title)
    axes.invert_yaxis()
    axes.margins(x=0.25, y=0.01)


def _draw_sizes(axes: Axes, inspection: Inspection) -> None:
    for name, split in inspection.splits.items():
        sizes = Counter(split.sizes)
        heights, widths = zip(*sizes, strict=True) if sizes else ((), ())
        areas = [12 + 40 * np.log10(count) for count in sizes.values()]
        axes.scatter(widths, heights, areas, color=_COLORS[name], alpha=0.6, linewidths=0)
    axes.set(title="image sizes", xlabel="width", ylabel="height")
    axes.margins(0.1)
    axes.set(xlim=(0, None), ylim=(0, None))
