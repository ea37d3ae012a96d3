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
from mask2former.files import atomic_write
from mask2former.maskformer_model import MaskFormer, Prediction

from . import exported_model
from .network import ExportError
from .numpy_postprocessing import (
    ResizedMasks,
    Size,
    instances,
    network_input,
    network_size,
    panoptic,
    semantic,
    semantic_resized_last,
)

Rgb = NDArray[np.uint8]

# Largest difference of mask logits, as a part of the range of all mask logits of an image.
TOLERANCE = 1e-3
# Largest part of the pixels whose result differs. The model is equal to itself only to rounding, and where two segments
# are equally likely, or a mask is as likely as not, the last bits of the outputs decide.
UNDECIDED = 1e-4
# Instances of lower scores are not compared: the order of the many that are close to zero is chance.
_CONFIDENT = 0.5
# Sides of drawn images.
_SIDES = (64, 640)


@dataclass(frozen=True)
class Comparison:
    """What an export does to the outputs and results of one image.

    Attributes:
        name: of the image.
        mask_difference: the largest of mask logits, over their range.
        logit_difference: the largest of class logits, over their range.
        results: how many pixels differ in each kind of result, made in NumPy from the export and in PyTorch from the
            model; all, where the segments are not the same.
        pixels: of the image.
    """

    name: str
    mask_difference: float
    logit_difference: float
    results: Mapping[str, int]
    pixels: int

    @property
    def passes(self) -> bool:
        """Whether outputs are close, and results equal but for the pixels that rounding decides."""
        return self.mask_difference < TOLERANCE and max(self.results.values()) <= UNDECIDED * self.pixels


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
            + ["ok" if c.passes else "FAILED"]
            for c in self.comparisons
        ]
        kinds = list(self.comparisons[0].results)
        names = ["image", "mask logits: difference / range", "class logits", *kinds, ""]
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
        comparisons.append(
            Comparison(
                name,
                mask_difference=_difference(got[1], expected[1]),
                logit_difference=_difference(got[0], expected[0]),
                pixels=images[name].shape[0] * images[name].shape[1],
                results=_differing(portable_results(*got, sizes, description), model_results(model, *expected, sizes)),
            )
        )
    # What a checkpoint of the weights alone takes.
    weights = sum(value.nbytes for value in model.state_dict().values())
    program = "onnxruntime" if path.suffix == ".onnx" else "torch.export"
    costs = {"PyTorch": _cost(weights, original), program: _cost(path.stat().st_size, exported)}
    return Verification(comparisons, costs)


def portable_results(
    logits: NDArray[np.float32],
    masks: NDArray[np.float32],
    sizes: tuple[Size, Size, Size],
    description: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    """Results of all tasks as maps, by `numpy_postprocessing`: segment ids, classes, and counts of instances.

    Args:
        logits: [Q, K + 1].
        masks: [Q, h, w].
        sizes: of the padded input, of the image in it, and of the result.
        description: see `describe`.
    """
    resized = ResizedMasks(masks, *sizes)
    things = [i for i, entry in enumerate(description["classes"]) if entry["isthing"]]
    results: dict[str, NDArray[Any]] = {}
    if "panoptic" in description["tasks"]:
        thresholds = description["object_mask_threshold"], description["overlap_threshold"]
        results["panoptic"] = panoptic(logits, resized, things, *thresholds)[0]
    if "semantic" in description["tasks"]:
        last = not description["resize_masks_first"]
        results["semantic"] = semantic_resized_last(logits, masks, *sizes) if last else semantic(logits, resized)
    if "instance" in description["tasks"]:
        kept = things if "panoptic" in description["tasks"] else None
        found, _, scores = instances(logits, resized, description["detections_per_image"], kept)
        results["instance"] = found[scores >= _CONFIDENT].sum(axis=0)
    return results


def model_results(
    model: MaskFormer,
    logits: NDArray[np.float32],
    masks: NDArray[np.float32],
    sizes: tuple[Size, Size, Size],
) -> dict[str, NDArray[Any]]:
    """The same by the model's own post-processing."""
    model.semantic_scores = False
    prediction = Prediction(torch.from_numpy(logits), torch.from_numpy(masks), sizes[0], sizes[1])
    found = model.postprocess(prediction, sizes[2])
    results: dict[str, NDArray[Any]] = {}
    if "panoptic_seg" in found:
        results["panoptic"] = found["panoptic_seg"][0].numpy()
    if "sem_seg" in found:
        results["semantic"] = found["sem_seg"].numpy()
    if "instances" in found:
        confident = found["instances"].scores >= _CONFIDENT
        results["instance"] = found["instances"].pred_masks[confident].sum(0).numpy()
    return results


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


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    difference = np.abs(got - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny)
    return float(difference) if np.isfinite(difference) else float("inf")


def _differing(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Pixels that differ, per task; all, where one has a segment that the other has not."""
    return {
        task: int(np.count_nonzero(got[task] != value)) if _same_segments(got[task], value) else value.size
        for task, value in expected.items()
    }


def _same_segments(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    return np.array_equal(np.unique(got), np.unique(expected))


def _cost(file_bytes: int, results: Mapping[str, NDArray[Any]]) -> tuple[float, float, float]:
    return file_bytes / 1e6, float(results["seconds"]), float(results["peak_bytes"]) / 1e6
