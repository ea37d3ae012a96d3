"""Runs an exported model without the packages that made it: .onnx with onnxruntime alone, .pt2 with PyTorch alone.

    python exported_model.py MODEL INPUTS.npz OUTPUTS.npz THREADS     # run each array of INPUTS, timed; see `measure`

Needs NumPy, and imports nothing of ours, so that it can be copied.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.utils.errors import UserError

Floats = NDArray[np.float32]
Outputs = tuple[Floats, Floats]

# A key that every description has.
_KNOWN_KEY = "classes"
# A model is run so often for its time, unless that takes longer than so many seconds.
_REPEATS = 3
_SECONDS = 20.0


class ModelFileError(UserError):
    """A file that is not one of our exports, or that can't be run here; the message names it."""


class OnnxModel:
    """An ONNX file on the CPU.

    Attributes:
        description: what `mask2former.export.describe` wrote: tasks, classes, sizes, thresholds.
        fixed_size: height and width of the input; None if they are free.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """Open a file; `threads` 0 lets onnxruntime choose.

        Raises:
            ModelFileError: no such file, or none that the exporter wrote.
        """
        import onnxruntime  # here, as the rest of this module needs only NumPy

        if not Path(path).is_file():
            raise ModelFileError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its arena grows by doubling, and keeps all it ever had.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelFileError(f"{path}: onnxruntime can't open it ({error})") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if _KNOWN_KEY not in properties:
            raise ModelFileError(
                f"{path}: not written by tools/export.py (it has no {_KNOWN_KEY!r} among its metadata)"
            )
        self.description: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}
        self._input = self._session.get_inputs()[0]
        height, width = self._input.shape[2:]
        self.fixed_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def __call__(self, image: Floats) -> Outputs:
        """Map an input [B, 3, H, W] to class logits [B, Q, K + 1] and mask logits [B, Q, H/4, W/4]."""
        logits, masks = (np.asarray(output) for output in self._session.run(None, {self._input.name: image}))
        return logits, masks


def load_torch_program(path: str | Path, threads: int) -> Callable[[Floats], Outputs]:
    """A .pt2 file as a function like `OnnxModel`."""
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(path).module()

    def run(image: Floats) -> Outputs:
        with torch.inference_mode():
            logits, masks = module(torch.from_numpy(image))
        return logits.numpy(), masks.numpy()

    return run


def measure(run: Callable[[Floats], Outputs], inputs: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
    """Outputs for each input as NAME.logits and NAME.masks, and `seconds` of a run and `peak_bytes` of this process.

    The seconds are the median over runs of the first input, after a first run that is not counted.
    """
    outputs: dict[str, NDArray[Any]] = {}
    for name, image in inputs.items():
        outputs[f"{name}.logits"], outputs[f"{name}.masks"] = run(image)
    first = next(iter(inputs.values()))
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _SECONDS:
        start = time.perf_counter()
        run(first)
        times.append(time.perf_counter() - start)
    return outputs | {"seconds": np.array(statistics.median(times)), "peak_bytes": np.array(peak_bytes())}


def peak_bytes() -> int:
    """The largest memory that this process had; on Linux since it started its program, not that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(model: str, inputs: str, outputs: str, threads: str) -> None:
    """Run a model on the arrays of a file."""
    run = load_torch_program(model, int(threads)) if model.endswith(".pt2") else OnnxModel(model, int(threads))
    with np.load(inputs) as arrays:
        results = measure(run, {name: arrays[name] for name in arrays.files})
    np.savez(outputs, **results)  # ty: ignore[invalid-argument-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
