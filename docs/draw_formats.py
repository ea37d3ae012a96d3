#!/usr/bin/env python
"""Draw the pictures of docs/data.md, docs/pictures/data_*: `python docs/draw_formats.py`.

With `--root DIR`, only small data sets are made in DIR/shapes and DIR/shape_classes, to try the commands of that page.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.custom.training_files import combine
from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.data.image_io import read_image, read_label_map, read_panoptic_ids, read_panoptic_png
from mask2former.utils.label_images import colors_to_ids, ids_to_colors, write_png

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
OUTLINE = [withStroke(linewidth=2.2, foreground="black")]
NAMES = {category.id: category.name for category in CATEGORIES}
_FOLDERS_SHOWN = 5


def prepare(root: Path) -> Path:
    """Draw the shapes data sets into `root`, and add instance numbers and a list of the classes."""
    script = REPOSITORY / "datasets" / "prepare_shapes.py"
    for options in (["--train", "20", "--val", "8", "--size", "256"], ["--classes", "--train", "40", "--val", "20"]):
        subprocess.run([sys.executable, str(script), "--root", str(root), *options], check=True)
    folder = root / "shapes"
    # Ids in label maps start at 0, in the order of the lines.
    (folder / "classes.txt").write_text("".join(f"{category.name}\n" for category in CATEGORIES), encoding="utf-8")
    for split in ("train", "val"):
        number_instances(folder, split)
    return folder


def number_instances(folder: Path, split: str) -> None:
    """Write PNGs with the instance numbers 1, 2, ... of each image."""
    things = {category.id for category in CATEGORIES if category.isthing}
    for annotation in read(folder / "annotations" / f"panoptic_{split}.json")["annotations"]:
        ids = read_panoptic_ids(folder / f"panoptic_{split}" / annotation["file_name"])
        numbers, last = np.zeros(ids.shape, np.uint8), 0
        for segment in annotation["segments_info"]:
            if segment["category_id"] in things and not segment["iscrowd"]:
                last += 1
                numbers[ids == segment["id"]] = last
        write_png(folder / f"numbers_{split}" / annotation["file_name"], numbers)


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class Example:
    """The files of one image in all formats."""

    def __init__(self, folder: Path):
        """Choose an image with void and many segments."""
        annotations = folder / "annotations"
        self.panoptic = max(read(annotations / "panoptic_train.json")["annotations"], key=lambda a: _variety(folder, a))
        self.stem = Path(self.panoptic["file_name"]).stem
        instances = read(annotations / "instances_train.json")["annotations"]
        self.instances = [entry for entry in instances if entry["image_id"] == self.panoptic["image_id"]]
        self.image = read_image(folder / "train" / f"{self.stem}.jpg")
        self.colors = read_panoptic_png(folder / "panoptic_train" / f"{self.stem}.png")
        self.labels = read_label_map(folder / "panoptic_semseg_train" / f"{self.stem}.png")
        self.numbers = read_label_map(folder / "numbers_train" / f"{self.stem}.png")


def _variety(folder: Path, annotation: Mapping[str, Any]) -> tuple[bool, int]:
    labels = read_label_map(folder / "panoptic_semseg_train" / annotation["file_name"])
    return bool((labels == 255).any()), len(annotation["segments_info"])


def write_on(axes: Axes, mask: NDArray[np.bool_], text: str) -> None:
    """Write text where a mask is widest."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    axes.text(float(x), float(y), text, ha="center", va="center", color="white", fontsize=8, path_effects=OUTLINE)


def show_image(axes: Axes, example: Example) -> None:
    """The image itself."""
    axes.imshow(example.image)
    axes.set_title("the image: JPEG, PNG, ...")


def show_polygons(axes: Axes, example: Example) -> None:
    """The polygons and boxes of COCO's instances JSON."""
    axes.imshow(example.image // 3 + 160)
    axes.autoscale(False)
    axes.set_title("annotations: polygons and boxes")
    for annotation in example.instances:
        if isinstance(annotation["segmentation"], dict):
            continue
        color = next(c.color for c in CATEGORIES if c.id == annotation["category_id"])
        x, y, width, height = annotation["bbox"]
        axes.add_patch(Rectangle((x, y), width, height, fill=False, ec="#444444", ls=":"))
        for polygon in annotation["segmentation"]:
            corners = np.reshape([*polygon, *polygon[:2]], (-1, 2))
            axes.plot(corners[:, 0], corners[:, 1], ".-", color=np.array(color) / 255, ms=4, lw=1.4)
        axes.text(
            x + width / 2,
            y + height / 2,
            f"{annotation['category_id']} {NAMES[annotation['category_id']]}",
            ha="center",
            va="center",
            color="white",
            fontsize=8,
            path_effects=OUTLINE,
        )


def show_panoptic(axes: Axes, example: Example) -> None:
    """A panoptic PNG in its own colours, with the ids that they encode."""
    axes.imshow(example.colors)
    axes.set_title("PNG: id = R + 256 G + 65536 B")
    ids = colors_to_ids(example.colors)
    for segment in example.panoptic["segments_info"]:
        write_on(axes, ids == segment["id"], str(segment["id"]))


def show_segments(axes: Axes, example: Example) -> None:
    """The `segments_info` of a panoptic JSON as a table."""
    axes.set_title("JSON: segments_info")
    axes.set_aspect("equal")
    rows = [
        [str(s["id"]), f"{s['category_id']} {NAMES[s['category_id']]}", str(s["area"]), str(s["iscrowd"])]
        for s in example.panoptic["segments_info"]
    ]
    table = axes.table(rows, colLabels=["id", "category_id", "area", "iscrowd"], loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.2)


def show_stored(axes: Axes, example: Example) -> None:
    """A label map as an image viewer shows it."""
    axes.imshow(example.labels, cmap="gray", vmin=0, vmax=255)
    axes.set_title("label PNG as viewers show it")


def show_labels(axes: Axes, example: Example) -> None:
    """The ids in a label map."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(CATEGORIES)] = [category.color for category in CATEGORIES]
    axes.imshow(table[example.labels])
    axes.set_title("label PNG: the class ids in it")
    for label in np.unique(example.labels):
        write_on(axes, example.labels == label, f"{label} {CATEGORIES[label].name if label < 255 else 'void'}")


def show_numbers(axes: Axes, example: Example) -> None:
    """The numbers in a map of instances."""
    axes.imshow(example.numbers, cmap="viridis")
    axes.set_title("instance PNG: numbers, 0 for none")
    for number in np.unique(example.numbers):
        write_on(axes, example.numbers == number, str(number))


def show_combined(axes: Axes, example: Example) -> None:
    """The segmentation that `tools/dataset.py config` makes from both."""
    categories = [type(c)(position, c.name, c.color, c.isthing) for position, c in enumerate(CATEGORIES)]
    ids, segments = combine(example.labels, example.numbers, tuple(categories))
    axes.imshow(ids_to_colors(ids))
    axes.set_title("combined: panoptic")
    for segment in segments:
        name = categories[segment["category_id"]].name
        write_on(axes, ids == segment["id"], f"{name}{' (crowd)' if segment['iscrowd'] else ''}")


FORMATS: Mapping[str, Sequence[Callable[[Axes, Example], None]]] = {
    "coco_instance": (show_image, show_polygons),
    "coco_panoptic": (show_image, show_panoptic, show_segments),
    "semantic": (show_image, show_stored, show_labels),
    "semantic_instance": (show_image, show_labels, show_numbers, show_combined),
}


def draw_class_folders(folder: Path) -> Path:
    """Draw the picture of class folders: images of some of them, under their paths."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())[:_FOLDERS_SHOWN]
    figure, rows = plt.subplots(2, len(folders), figsize=(1.9 * len(folders), 4), dpi=100, layout="constrained")
    for path, column in zip(folders, rows.T, strict=True):
        for axes, file in zip(column, sorted(path.iterdir()), strict=False):
            axes.imshow(read_image(file))
            axes.set_title(f"photos/{path.name}/{file.name}", fontsize=9)
            axes.axis("off")
    return save(figure, "class_folders")


def save(figure: Figure, name: str) -> Path:
    """Write the picture of a format."""
    path = PICTURES / f"data_{name}.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def draw(name: str, example: Example) -> Path:
    """Draw the picture of a format."""
    panels = FORMATS[name]
    figure, all_axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.4), dpi=100, layout="constrained")
    for axes, show in zip(all_axes, panels, strict=True):
        show(axes, example)
        axes.title.set_fontsize(10)
        axes.axis("off")
    return save(figure, name)


def preview(folder: Path, output: Path) -> list[Path]:
    """Run `tools/dataset.py preview` on the pairs of PNGs, and return its pictures, the samples reduced in size."""
    options = [f"--classes={folder}/classes.txt", f"--output={output}", "--count=6"]
    for prefix, split in (("", "train"), ("val-", "val")):
        files = {"images": split, "labels": f"panoptic_semseg_{split}", "instances": f"numbers_{split}"}
        options += [f"--{prefix}{option}={folder / name}" for option, name in files.items()]
    subprocess.run([sys.executable, str(REPOSITORY / "tools" / "dataset.py"), "preview", *options], check=True)
    samples, classes = PICTURES / "data_samples.jpg", PICTURES / "data_classes.png"
    with Image.open(output / "samples_train.png") as sheet:
        sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(samples, quality=85)
    shutil.copyfile(output / "classes.png", classes)
    return [samples, classes]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, metavar="DIR", help="only make the data, in this folder")
    options = parser.parse_args(arguments)
    if options.root:
        prepare(options.root)
        return
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepare(Path(temporary))
        example = Example(folder)
        pictures = [draw(name, example) for name in FORMATS] + preview(folder, Path(temporary, "preview"))
        for path in [*pictures, draw_class_folders(Path(temporary, "shape_classes", "train"))]:
            print(path)


if __name__ == "__main__":
    main()
