"""Compares an exported file with the model it was made of: outputs, results, time and memory."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from mask2former.data.datasets.shapes_scene import draw_scene
from mask2former.maskformer_model import MaskFormer
from mask2former.utils.files import atomic_write

from . import exported_model
from .comparison import MARGIN, Comparison, compare
from .network import ExportError
from .numpy_postprocessing import Size, network_input, network_size

Rgb = NDArray[np.uint8]

# Sides of drawn images.
_SIDES = (64, 640)


@dataclass(frozen=True)
class Verification:
    """Comparisons of some images, and costs: program -> MB of its file, seconds a run, MB of memory at its peak."""

    comparisons: Sequence[Comparison]
    costs: Mapping[str, tuple[float, float, float]]

    @property
    def passes(self) -> bool:
        """Whether every image does."""
        return all(comparison.passes for comparison in self.comparisons)

    def table(self) -> str:
        """Both tables, in Markdown."""
        rows = [
            [c.name, f"{c.mask_difference:.1e}", f"{c.logit_difference:.1e}"]
            + [f"{count} of {c.pixels} differ" if count else "equal" for count in c.results.values()]
            + [c.undecided, "ok" if c.passes else "FAILED"]
            for c in self.comparisons
        ]
        kinds = list(self.comparisons[0].results)
        names = ["image", "mask logits: difference / range", "class logits", *kinds, f"left out: within {MARGIN}", ""]
        costs = [[program, *values] for program, values in self.costs.items()]
        cost_names = [
            "program",
            "file, MB",
            f"seconds an image, {torch.get_num_threads()} thread(s)",
            "peak memory, MB",
        ]
        return "\n\n".join(
            (
                tabulate(rows, headers=names, tablefmt="github", disable_numparse=True),
                tabulate(costs, headers=cost_names, tablefmt="github", floatfmt=("", ".0f", ".2f", ".0f")),
            )
        )


def drawn_images(size: Size) -> dict[str, Rgb]:
    """Three drawn scenes of different sizes, about as large as `size` (height, width)."""
    side = min(_SIDES[1], max(_SIDES[0], *size))
    pictures = {f"drawn {seed}": draw_scene(RandomState(seed), side).image for seed in (1, 2, 3)}
    crops = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.66))
    return {
        name: np.ascontiguousarray(picture[: round(side * height), : round(side * width)])
        for (name, picture), (height, width) in zip(pictures.items(), crops, strict=True)
    }


def verify(
    path: Path,
    model: MaskFormer,
    cfg: CfgNode,
    description: Mapping[str, Any],
    images: Mapping[str, Rgb],
    fixed_size: Size | None,
) -> Verification:
    """Run a file and the model on images, each in a process of its own, and compare.

    Args:
        path: the exported file.
        model: makes results of outputs; its network is not used.
        cfg: the model as it is used without an export, with paths that are absolute.
        description: of the file.
        images: RGB [H, W, 3].
        fixed_size: of the input, if the file takes only one.

    Raises:
        ExportError: one of the processes failed.
    """
    inputs, places = {}, {}
    for name, image in images.items():
        inputs[name], places[name] = _prepare(image, description, fixed_size)
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder, "config.yaml")
        with atomic_write(config_file) as file:
            file.write(cfg.dump())
        np.savez(Path(folder, "inputs.npz"), **inputs)
        original = _run(["-m", f"{__package__}.original_model", str(config_file)], folder)
        exported = _run([exported_model.__file__, str(path)], folder)
    comparisons = []
    for name, (image_size, padded_size) in places.items():
        sizes = (padded_size, image_size, (images[name].shape[0], images[name].shape[1]))
        expected, got = ((r[f"{name}.logits"][0], r[f"{name}.masks"][0]) for r in (original, exported))
        comparisons.append(compare(name, got, expected, sizes, model, description))
    # What a checkpoint of the weights alone takes.
    weights = sum(value.nbytes for value in model.state_dict().values())
    program = "onnxruntime" if path.suffix == ".onnx" else "torch.export"
    costs = {"PyTorch": _cost(weights, original), program: _cost(path.stat().st_size, exported)}
    return Verification(comparisons, costs)


def _prepare(
    image: Rgb, description: Mapping[str, Any], fixed_size: Size | None
) -> tuple[NDArray[np.float32], tuple[Size, Size]]:
    """The input of an image, and the sizes of the image in it and of all of it."""
    limits = (description["min_size"], description["max_size"], description["divisibility"])
    resized, padded = network_size((image.shape[0], image.shape[1]), *limits, fixed_size)
    pixels = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR))
    return network_input(pixels, padded, description["image_format"], description["pixel_mean"]), (resized, padded)


def _run(command: Sequence[str], folder: str) -> dict[str, NDArray[Any]]:
    outputs = Path(folder, "outputs.npz")
    files = [str(Path(folder, "inputs.npz")), str(outputs), str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, *command, *files], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{' '.join(command)} failed:\n{done.stderr}")
    with np.load(outputs) as arrays:
        results = {name: arrays[name] for name in arrays.files}
    outputs.unlink()
    return results


def _cost(file_bytes: int, results: Mapping[str, NDArray[Any]]) -> tuple[float, float, float]:
    return file_bytes / 1e6, float(results["seconds"]), float(results["peak_bytes"]) / 1e6
