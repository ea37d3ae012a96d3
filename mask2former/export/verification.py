"""Verifies an exported file: compares outputs, results, time and memory with those of the model.

    python -m mask2former.export.verification CONFIG.yaml INPUTS.npz OUTPUTS.npz THREADS    # measures the model itself

CONFIG holds all keys, and absolute paths.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from dinat_common.files import writing
from mask2former.checkpoint import Checkpointer
from mask2former.config import setup_cfg
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.modeling import inference
from mask2former.modeling.inference import InferenceSettings, Queries
from mask2former.modeling.mask_resizing import Resize, ResizedMasks, class_map
from mask2former.tasks import TASKS

from . import exported_model
from . import numpy_postprocessing as portable
from .network import ExportError, export_form
from .numpy_postprocessing import Floats, ImageSizes, NumpyMasks, Size

# Class logits [Q, K + 1] and mask logits [Q, h, w] of one image; of a classifier, logits [K] or [K, h, w] alone.
ImageOutputs = tuple[Floats, ...]
Results = Mapping[str, NDArray[Any]]

# Largest difference of mask logits, or of a classifier's logits, relative to the range of all of them of an image.
TOLERANCE = 1e-3
# Where two segments are equally likely, or a mask probability is 1/2, rounding decides, which differs between programs.
# Panoptic pixels are excluded if the two best probabilities, or the mask's and 1/2, are at most this far apart.
MARGIN = 1e-4
# Largest share of the pixels of other results that may differ, for the same reason.
UNDECIDED = 1e-4
# Instances with lower scores are not compared: many scores are close to zero, and their order is arbitrary.
_CONFIDENT = 0.5


@dataclass(frozen=True)
class ImageComparison:
    """Differences between an exported file and its model on one image.

    Attributes:
        name: Name of the image.
        mask_difference: Largest difference of mask logits, relative to their range.
        logit_difference: Largest difference of class logits, relative to their range.
        results: Number of pixels that differ, by task: post-processing of the export in NumPy against the model's own.
            All pixels if the segments are not the same.
        undecided: Number of panoptic pixels that differ within `MARGIN` and are not counted in `results`.
        pixels: Number of pixels of the image.
    """

    name: str
    mask_difference: float
    logit_difference: float
    results: Mapping[str, int]
    undecided: int
    pixels: int

    @property
    def passes(self) -> bool:
        """Whether outputs are close, and results equal except for pixels that rounding decides."""
        allowed = {task: 0 if task == "panoptic" else UNDECIDED * self.pixels for task in self.results}
        return self.mask_difference < TOLERANCE and all(self.results[task] <= allowed[task] for task in allowed)

    def cells(self) -> dict[str, Any]:
        """Row of a table, by the headers of its columns."""
        return {
            "image": self.name,
            "mask logits: difference / range": f"{self.mask_difference:.1e}",
            "class logits": f"{self.logit_difference:.1e}",
            **{task: f"{count} of {self.pixels} differ" if count else "equal" for task, count in self.results.items()},
            f"excluded: within {MARGIN}": self.undecided,
            "": "ok" if self.passes else "FAILED",
        }


@dataclass(frozen=True)
class ClassComparison:
    """Differences between an exported classifier and its model on one image.

    Attributes:
        name: Name of the image.
        logit_difference: Largest difference of class logits, relative to their range.
        found: The most probable class by the exported file.
        expected: The most probable class by the model.
        undecided: Always 0, as in `ImageComparison`.
    """

    name: str
    logit_difference: float
    found: int
    expected: int
    undecided: int = 0

    @property
    def passes(self) -> bool:
        """Whether logits are close and the best class is the same."""
        return self.logit_difference < TOLERANCE and self.found == self.expected

    def cells(self) -> dict[str, Any]:
        """Row of a table, by the headers of its columns."""
        same = "equal" if self.found == self.expected else f"{self.found} instead of {self.expected}"
        return {
            "image": self.name,
            "class logits: difference / range": f"{self.logit_difference:.1e}",
            "best class": same,
            "": "ok" if self.passes else "FAILED",
        }


@dataclass(frozen=True)
class PixelComparison:
    """Differences between an exported classifier of pixels and its model on one image.

    Attributes:
        name: Name of the image.
        logit_difference: Largest difference of class logits, relative to their range.
        differing: Number of pixels with another class, without the undecided ones.
        undecided: Number of pixels with another class whose two best probabilities are at most `MARGIN` apart.
        pixels: Number of pixels of the image.
    """

    name: str
    logit_difference: float
    differing: int
    undecided: int
    pixels: int

    @property
    def passes(self) -> bool:
        """Whether logits are close and all other pixels have the same class."""
        return self.logit_difference < TOLERANCE and self.differing == 0

    def cells(self) -> dict[str, Any]:
        """Row of a table, by the headers of its columns."""
        return {
            "image": self.name,
            "class logits: difference / range": f"{self.logit_difference:.1e}",
            "semantic": f"{self.differing} of {self.pixels} differ" if self.differing else "equal",
            f"excluded: within {MARGIN}": self.undecided,
            "": "ok" if self.passes else "FAILED",
        }


Comparison = ImageComparison | PixelComparison | ClassComparison


class _QueriesCheck:
    """The input that a Mask2Former gets for an image, and the comparison of its outputs."""

    def __init__(self, image: NDArray[np.uint8], description: Mapping[str, Any], fixed_size: Size | None) -> None:
        self._description = description
        self.input, self._sizes = portable.prepare(image, description, fixed_size)

    def compare(self, name: str, got: ImageOutputs, expected: ImageOutputs, model: Any) -> Comparison:
        return compare(name, got, expected, self._sizes, model.inference_settings, self._description)


class _PixelsCheck(_QueriesCheck):
    """The same for a classifier of pixels."""

    def compare(self, name: str, got: ImageOutputs, expected: ImageOutputs, model: Any) -> Comparison:
        return compare_pixels(name, got[0], expected[0], self._sizes)


class _CropCheck:
    """The same for an image classifier."""

    def __init__(self, image: NDArray[np.uint8], description: Mapping[str, Any], fixed_size: Size | None) -> None:
        self.input = portable.prepare_crop(image, description)

    def compare(self, name: str, got: ImageOutputs, expected: ImageOutputs, model: Any) -> Comparison:
        (found,), (wanted,) = got, expected
        return ClassComparison(name, _relative(found, wanted), int(found.argmax()), int(wanted.argmax()))


# By the kind of output; see `network.ExportForm`.
_CHECKS = {"queries": _QueriesCheck, "pixels": _PixelsCheck, "crop": _CropCheck}


def verify(
    path: Path,
    model: nn.Module,
    cfg: CfgNode,
    description: Mapping[str, Any],
    images: Mapping[str, NDArray[np.uint8]],
    fixed_size: Size | None,
) -> tuple[list[Comparison], dict[str, tuple[float, float, float]]]:
    """Run a file and the model on images, each in its own process, and compare.

    Args:
        path: The exported file.
        model: The model; only its inference settings, if any, and the size of its weights are used.
        cfg: Config of the model without the changes for the export, with absolute paths.
        description: Description in the file; see `mask2former.export.describe`.
        images: RGB images [H, W, 3] by name.
        fixed_size: Height and width of the input if the file accepts only one size.

    Returns:
        One comparison per image; and size of the file in MB, seconds per image and peak memory in MB, by program.

    Raises:
        ExportError: One of the processes failed.
    """
    check_kind = _CHECKS[description["kind"]]
    checks = {name: check_kind(image, description, fixed_size) for name, image in images.items()}
    inputs: dict[str, Any] = {name: check.input for name, check in checks.items()}
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder, "config.yaml")
        with writing(folder):
            config_file.write_text(cfg.dump(), encoding="utf-8")
            np.savez(Path(folder, "inputs.npz"), **inputs)
        original = measure_in_process(["-m", __name__, str(config_file)], folder)
        exported = measure_in_process([exported_model.__file__, str(path)], folder)
    comparisons = []
    for name, check in checks.items():
        keys = [key for key in (f"{name}.logits", f"{name}.masks") if key in original]
        expected, got = (tuple(results[key][0] for key in keys) for results in (original, exported))
        comparisons.append(check.compare(name, got, expected, model))
    # As large as a checkpoint that holds only the weights.
    weights = sum(value.nbytes for value in model.state_dict().values())
    program = "onnxruntime" if path.suffix == ".onnx" else "torch.export"
    costs = {
        name: (file_bytes / 1e6, float(measured["seconds"]), float(measured["peak_bytes"]) / 1e6)
        for name, file_bytes, measured in (("PyTorch", weights, original), (program, path.stat().st_size, exported))
    }
    return comparisons, costs


def measure_in_process(command: Sequence[str], folder: str) -> Results:
    """Run a Python command that measures a program on inputs.npz of a folder, and return the arrays that it saves.

    Raises:
        ExportError: The process failed.
    """
    inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
    words = [sys.executable, *command, str(inputs), str(outputs), str(torch.get_num_threads())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{' '.join(command)} failed:\n{done.stderr}")
    with np.load(outputs) as arrays:
        return {name: arrays[name] for name in arrays.files}


def compare(
    name: str,
    got: ImageOutputs,
    expected: ImageOutputs,
    sizes: ImageSizes,
    settings: InferenceSettings,
    description: Mapping[str, Any],
) -> ImageComparison:
    """Compare the outputs for one image, and the results made of them.

    Args:
        name: Name of the image.
        got: Outputs of the exported file, turned into results by `numpy_postprocessing`.
        expected: Outputs of the model, turned into results by its own post-processing.
        sizes: Sizes of the input, the image in it, and the results.
        settings: Inference settings of the model.
        description: Description in the file.
    """
    (logits, masks), (expected_logits, expected_masks) = got, expected
    ours = numpy_results(logits, masks, sizes, description)
    theirs = model_results(expected_logits, expected_masks, sizes, settings)
    results, undecided = count_differences(ours, theirs), 0
    pixels = sizes.result[0] * sizes.result[1]
    if results.get("panoptic", pixels) < pixels:
        differ = ours["panoptic"] != theirs["panoptic"]
        undecided = count_undecided(expected_logits, expected_masks, sizes, description, differ)
        results["panoptic"] -= undecided
    logit_difference, mask_difference = (_relative(a, b) for a, b in zip(got, expected, strict=True))
    return ImageComparison(name, mask_difference, logit_difference, results, undecided, pixels)


def compare_pixels(name: str, got: Floats, expected: Floats, sizes: ImageSizes) -> PixelComparison:
    """Compare the class logits [K, h, w] of pixels for one image, and the maps of classes made of them.

    Args:
        name: Name of the image.
        got: Logits of the exported file, turned into classes by `numpy_postprocessing`.
        expected: Logits of the model, turned into classes by its own post-processing.
        sizes: Sizes of the input, the image in it, and the result.
    """
    whole = (expected.shape[1], expected.shape[2])
    resized = ResizedMasks(torch.from_numpy(expected), [Resize(whole, sizes.padded), Resize(sizes.image, sizes.result)])
    differ = portable.pixel_classes(NumpyMasks(got, sizes)) != class_map(resized).numpy()
    undecided = 0
    for rows, strip in resized.strips() if differ.any() else ():
        best = strip[:, torch.from_numpy(differ[rows])].softmax(0).topk(min(2, len(strip)), dim=0).values
        undecided += int((best[0] - best[-1] <= MARGIN).sum())
    count = int(np.count_nonzero(differ))
    return PixelComparison(name, _relative(got, expected), count - undecided, undecided, differ.size)


def _relative(got: Floats, expected: Floats) -> float:
    """Largest difference, relative to the range of the expected values."""
    return float(np.abs(got - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny))


def numpy_results(logits: Floats, masks: Floats, sizes: ImageSizes, description: Mapping[str, Any]) -> Results:
    """Results of all tasks as maps [H, W] by `numpy_postprocessing`: segment ids, classes, numbers of instances."""
    resized, tasks = NumpyMasks(masks, sizes), description["tasks"]
    things = [i for i, entry in enumerate(description["classes"]) if entry["isthing"]]
    results: dict[str, NDArray[Any]] = {}
    if "panoptic" in tasks:
        thresholds = description["object_mask_threshold"], description["overlap_threshold"]
        results["panoptic"] = portable.panoptic(logits, resized, things, *thresholds)[0]
    if "instance" in tasks:
        found, _, scores = portable.instances(logits, resized, description["detections_per_image"], things)
        results["instance"] = found[scores >= _CONFIDENT].sum(axis=0)
    if "semantic" in tasks:
        results["semantic"] = portable.semantic(logits, resized, description["resize_masks_first"])
    return results


def model_results(logits: Floats, masks: Floats, sizes: ImageSizes, settings: InferenceSettings) -> Results:
    """The same as `numpy_results` by the model's own post-processing."""
    queries = Queries(torch.from_numpy(logits), torch.from_numpy(masks), sizes.padded, sizes.image)
    found = inference.run(queries, sizes.result, replace(settings, semantic_scores=False))
    maps: dict[str, Callable[[Any], torch.Tensor]] = {
        "panoptic": lambda result: result[0],
        "instance": lambda result: result.pred_masks[result.scores >= _CONFIDENT].sum(0),
        "semantic": lambda result: result,
    }
    return {task: maps[task](found[TASKS[task].output]).numpy() for task in settings.tasks}


def count_differences(got: Results, expected: Results) -> dict[str, int]:
    """Number of pixels that differ, by task; all pixels if one of both maps has a segment that the other lacks."""
    return {
        task: int(np.count_nonzero(got[task] != value))
        if np.array_equal(np.unique(got[task]), np.unique(value))
        else value.size
        for task, value in expected.items()
    }


def count_undecided(
    logits: Floats,
    masks: Floats,
    sizes: ImageSizes,
    description: Mapping[str, Any],
    pixels: NDArray[np.bool_],
) -> int:
    """Number of some pixels [H, W] of the panoptic map that the model's outputs leave to rounding; see `MARGIN`."""
    scores, classes = torch.from_numpy(logits).softmax(-1).max(-1)
    kept = ((classes < logits.shape[1] - 1) & (scores > description["object_mask_threshold"])).nonzero()[:, 0]
    if not pixels.any() or len(kept) == 0:
        return 0
    resized = NumpyMasks(masks, sizes)
    values = torch.from_numpy(np.stack([resized.whole(query)[pixels] for query in kept.tolist()])).sigmoid()
    best = (scores[kept, None] * values).topk(min(2, len(kept)), dim=0)
    held = values.gather(0, best.indices[:1])[0]
    close = (best.values[0] - best.values[-1] <= MARGIN) if len(kept) > 1 else torch.zeros_like(held, dtype=torch.bool)
    return int((close | ((held - 0.5).abs() <= MARGIN)).sum())


def measure_model(config_file: str, inputs: str, outputs: str, threads: str) -> None:
    """Measure the model of a config as `exported_model` measures its export; see `measure`."""
    torch.set_num_threads(int(threads))
    cfg = setup_cfg(config_file)
    register_custom_datasets(cfg.DATASETS.CUSTOM, ".")
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    exported_model.measure(exported_model.numpy_program(export_form(model).network(model)), inputs, outputs)


if __name__ == "__main__":
    measure_model(*sys.argv[1:])
