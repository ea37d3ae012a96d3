#!/usr/bin/env python
"""Memory of predicting one image with a published setting, against the memory that cannot be avoided.

    python benchmarks/model_memory.py [--settings coco-panoptic ...] [--size 800 1333] [--output STEM] [KEY VALUE ...]

Follows every tensor from its creation to its end, with random weights, and prints: the weights; the largest unavoidable
activation, which is the memory that the largest operator (matrix product, convolution, attention or interpolation:
these can't work in place) reads and writes, without weights; the peak of all live tensors, weights included; its ratio
to the sum of the first two; the tensors alive at the peak, by the operator and module that made them; and, on Linux,
the rise of the process's memory since before the model was built, as a check of the count.
"""

import argparse
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _measure import describe, machine, peak_memory, save, table
from _settings import ROOT, read_config
from detectron2.modeling import build_model
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mask2former.model_zoo import SETTINGS

_CPU = torch.device("cpu")
_NOT_IN_PLACE = ("mm", "linear", "conv", "attention", "attn", "upsample")


class LiveTensors(TorchDispatchMode):
    """Follows the storages of all tensors created in its context.

    Attributes:
        running: Names of the modules that are running, from the outermost inwards.
        peak: Largest number of bytes alive at once.
        at_peak: Bytes alive at the peak, by operator and module.
        largest_operator: Largest number of bytes that one operator reads and writes, without tensors created before;
            and its name.
    """

    def __init__(self) -> None:
        """Start without tensors."""
        super().__init__()
        self.running = [""]
        self._live: dict[weakref.ref[torch.UntypedStorage], tuple[int, str]] = {}
        self._now = 0
        self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self.largest_operator = (0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and follow its results."""
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        maker = f"{operator} in {self.running[-1]}"
        for storage in _storages(result):
            reference = weakref.ref(storage, self._end)
            if reference not in self._live:
                self._live[reference] = (storage.nbytes(), maker)
                self._now += storage.nbytes()
        if self._now > self.peak:
            self.peak = self._now
            self.at_peak = Counter()
            for size, name in self._live.values():
                self.at_peak[name] += size
        if any(part in operator for part in _NOT_IN_PLACE):
            used = set(_storages((args, kwargs, result)))
            known = (self._live.get(weakref.ref(storage), (0, "")) for storage in used)
            self.largest_operator = max(self.largest_operator, (sum(size for size, _ in known), maker))
        return result

    def _end(self, reference: "weakref.ref[torch.UntypedStorage]") -> None:
        self._now -= self._live.pop(reference)[0]


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def follow(model: torch.nn.Module, inputs: dict[str, Any], **options: Any) -> LiveTensors:
    """Predict once with these options of the model, following all tensors except the weights and the inputs."""
    live = LiveTensors()
    names = {module: name or "model" for name, module in model.named_modules()}
    hooks = (
        register_module_forward_pre_hook(lambda module, _: live.running.append(names[module])),
        register_module_forward_hook(lambda *_: _leave(live)),
    )
    try:
        with torch.inference_mode(), live:
            model([inputs], **options)
    finally:
        for hook in hooks:
            hook.remove()
    return live


def _leave(live: LiveTensors) -> None:
    live.running.pop()


def measure(setting: str, size: tuple[int, int], opts: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure a setting; return rows of the tensors alive at the peak, and the summary, in MB."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0", *opts]
    cfg = read_config(setting, options)
    inputs = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    found: dict[str, Any] = {}

    def predict() -> None:
        model = build_model(cfg).eval()
        settings = replace(model.inference_settings, semantic_scores=False)
        found["weights"] = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        found["live"] = follow(model, inputs, settings=settings)

    process = peak_memory(predict, _CPU)
    live, weights = found["live"], found["weights"] / 1e6
    operator, name = live.largest_operator[0] / 1e6, live.largest_operator[1]
    peak = weights + live.peak / 1e6
    rows = [{"setting": setting, "alive at the peak": "weights", "MB": weights}]
    largest = live.at_peak.most_common(12)
    rows += [{"setting": setting, "alive at the peak": name, "MB": size / 1e6} for name, size in largest]
    rest = live.peak - sum(size for _, size in largest)
    rows.append({"setting": setting, "alive at the peak": "rest", "MB": rest / 1e6})
    summary = {
        "weights MB": weights,
        "largest unavoidable activation MB": operator,
        "of": name,
        "peak MB": peak,
        "ratio to the sum": peak / (weights + operator),
        "process rose by MB": process,
    }
    return rows, {f"{setting}, {name}": value for name, value in summary.items()}


def _label(row: dict[str, Any]) -> str:
    """Operator and the end of the module's name, short enough to leave room for the bar."""
    operator, _, module = row["alive at the peak"].partition(" in ")
    return f"{row['setting']}: {operator} {module[-30:]}"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["coco-panoptic"], metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=Path, metavar="STEM", default=ROOT / "benchmarks/results/model-memory-cpu")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    args = parser.parse_intermixed_args()
    rows, summary = [], {}
    for setting in args.settings:
        more_rows, more_summary = measure(setting, tuple(args.size), args.opts)
        rows += more_rows
        summary |= more_summary
    title = f"Memory of predicting one image of {args.size[0]} x {args.size[1]}"
    facts = machine(_CPU)
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    for name, value in summary.items():
        print(name, value if isinstance(value, str) else f"{value:.3g}")
    bars = {_label(row): {"MB": row["MB"]} for row in rows if row["MB"]}
    save(args.output, title, facts, rows, summary, bars, "MB")


if __name__ == "__main__":
    main()
