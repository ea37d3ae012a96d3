"""Runs an exported model: .onnx with onnxruntime alone, .pt2 with PyTorch alone.

    python exported_model.py MODEL INPUTS.npz OUTPUTS.npz THREADS     # measures a model; see `measure`

Imports NumPy and nothing of this project, so that it can be copied.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# Outputs of a network: class logits [B, Q, K + 1] and mask logits [B, Q, h, w]; of a classifier of pixels, class logits
# [B, K, h, w] alone; of an image classifier, logits [B, K] alone.
Outputs = tuple[Floats, ...]
Program = Callable[[Floats], Outputs]

# Names of the outputs in the file that `measure` writes.
_NAMES = ("logits", "masks")
# A program is timed this often, but not started again after this many seconds.
_REPEATS = 3
_SECONDS = 20.0


class ModelFileError(ValueError):
    """A file that is not one of our exports, or that can't be run here; the message names it."""


class OnnxModel:
    """An ONNX file on the CPU.

    Attributes:
        description: Tasks, classes, sizes and thresholds, as `mask2former.export.describe` returns them.
        fixed_size: Height and width of the input; None if the file accepts any.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """Open a file; with `threads` 0 onnxruntime chooses their number.

        Raises:
            ModelFileError: The file is missing, or the exporter did not write it.
        """
        import onnxruntime  # the rest of this module needs only NumPy

        if not Path(path).is_file():
            raise ModelFileError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # The arena doubles whenever it grows, and never gives memory back.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelFileError(f"{path}: onnxruntime can't open it ({error})") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if "classes" not in properties:
            raise ModelFileError(f"{path}: not written by tools/export.py (it has no 'classes' among its metadata)")
        self.description: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}
        self._input = self._session.get_inputs()[0]
        height, width = self._input.shape[2:]
        self.fixed_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def __call__(self, image: Floats) -> Outputs:
        """Map an input [B, 3, H, W] to the outputs of the network."""
        return tuple(np.asarray(output) for output in self._session.run(None, {self._input.name: image}))


def numpy_program(module: Any) -> Program:
    """Wrap a PyTorch module as a function of NumPy arrays, without gradients."""
    import torch

    def run(image: Floats) -> Outputs:
        with torch.inference_mode():
            return tuple(output.numpy() for output in module(torch.from_numpy(image)))

    return run


def load_program(path: str | Path, threads: int) -> Program:
    """Load a .onnx or .pt2 file as a function of NumPy arrays."""
    if str(path).endswith(".onnx"):
        return OnnxModel(path, threads)
    import torch

    torch.set_num_threads(threads)
    return numpy_program(torch.export.load(path).module())


def measure(run: Program, inputs: str | Path, outputs: str | Path) -> None:
    """Run a program on the arrays of one .npz file and write another.

    The result holds NAME.logits and, if the network has a second output, NAME.masks for each input NAME, `seconds`
    (median of runs on the first input after a warm-up) and `peak_bytes` (see `peak_bytes`).
    """
    results: dict[str, Any] = {}
    with np.load(inputs) as arrays:
        images = {name: arrays[name] for name in arrays.files}
    for name, image in images.items():
        results |= {f"{name}.{kind}": output for kind, output in zip(_NAMES, run(image), strict=False)}
    first = next(iter(images.values()))
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _SECONDS:
        start = time.perf_counter()
        run(first)
        times.append(time.perf_counter() - start)
    np.savez(outputs, **results, seconds=statistics.median(times), peak_bytes=peak_bytes())


def peak_bytes() -> int:
    """Peak memory of this process; on Linux since its program started, without what its parent used before."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # missing on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    measure(load_program(sys.argv[1], int(sys.argv[4])), sys.argv[2], sys.argv[3])
