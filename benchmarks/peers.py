#!/usr/bin/env python
"""Our COCO panoptic model side by side with models that a user could take instead: speed, memory, size.

    python benchmarks/peers.py [--size 640 640] [--threads 1] [--repeats 3] [--dtype float32] [--device cpu]
                               [--models ...] [--passes inference training] [--targets 30] [--output STEM]

Peers are models of the library transformers with the sizes of their published weights: Mask2Former with Swin-L (window
12, 200 queries), EoMT with ViT-L (patches of 16, 200 queries) and OneFormer with DiNAT-L. Weights are random, and all
queries take part in the panoptic result, which has the size of the image: the most work. Network and post-processing
are timed apart. A training step is forward pass, losses with the same number of targets, backward pass and AdamW.

Every model and pass runs in a process of its own. Peak memory is the rise of that process, or the memory of the GPU,
from before the model is built. With one thread on a CPU, times are processor seconds, which other programs hardly
disturb. A call that takes longer than --seconds is measured once, without a warm-up. A peer that can't run is named
with the reason.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _measure import describe, machine, peak_memory, save, seconds, table, use_cpu_time
from _peer_models import NAMES, OURS, build
from _settings import ROOT
from model import training_input

_PASSES = ("inference", "training")
_CLASSES = 133
# What a model that can't run here raises; the message names it.
_ABSENT = (ImportError, ValueError, RuntimeError, OSError)


def measure(name: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one pass of a model in this process; return its numbers, or the reason why it is absent."""
    device, size = torch.device(options.device), tuple(options.size)
    found: dict[str, Any] = {}

    def run() -> None:
        model = build(name, size, device, options.dtype == "bfloat16", options.tiny, kind == "training")
        found["parameters M"] = sum(p.numel() for p in model.model.parameters()) / 1e6
        inputs = training_input(size, options.targets, _CLASSES)
        if kind == "training":
            found["step s"] = seconds(lambda: model.step(inputs), options.repeats, device, options.seconds)
            return
        with torch.inference_mode():
            image = inputs["image"]
            found["network s"] = seconds(lambda: model.network(image), options.repeats, device, options.seconds)
            raw = model.network(image)
            found["panoptic s"] = seconds(lambda: model.panoptic(raw, size), options.repeats, device, options.seconds)
            ids, found["segments"] = model.panoptic(raw, size)
            if tuple(ids.shape) != size:
                raise ValueError(f"its result has the size {tuple(ids.shape)}, the image {size}")

    try:
        found["peak MB"] = peak_memory(run, device)
    except _ABSENT as error:
        # Without the path of a file, which messages of imports end with.
        reason = re.sub(r" \([^()]*[/\\][^()]*\)$", "", str(error).strip().splitlines()[0])
        return {"absent": f"{type(error).__name__}: {reason}"}
    return found


def in_a_process(name: str, kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Do the same as `measure` in a process of its own."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), *arguments, "--only", name, kind]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        return {"absent": f"its process ended with {process.returncode}"}
    return json.loads(lines[-1])


def rows_of(found: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per model, with its times relative to ours."""
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        predicted, trained = (found.get((name, kind), {}) for kind in _PASSES)
        row: dict[str, Any] = {"model": name, "parameters M": (predicted | trained).get("parameters M")}
        for key in ("network s", "panoptic s", "segments"):
            row[key] = predicted.get(key)
        row["inference s"] = _inference(predicted)
        row["inference / ours"] = _ratio(row["inference s"], _inference(found.get((OURS, "inference"), {})))
        row["inference peak MB"] = predicted.get("peak MB")
        row["training step s"] = trained.get("step s")
        row["training / ours"] = _ratio(row["training step s"], found.get((OURS, "training"), {}).get("step s"))
        row["training peak MB"] = trained.get("peak MB")
        # A reason instead of numbers is listed below the table.
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _inference(numbers: dict[str, Any]) -> float | None:
    return numbers["network s"] + numbers["panoptic s"] if "network s" in numbers else None


def _ratio(value: float | None, ours: float | None) -> float | None:
    return value / ours if value is not None and ours is not None else None


def _save(found: dict[tuple[str, str], dict[str, Any]], options: argparse.Namespace, stem: Path) -> None:
    rows = rows_of(found)
    facts = machine(torch.device(options.device)) | {"transformers": _transformers(), "type": options.dtype}
    absent = {f"absent: {' '.join(key)}": row["absent"] for key, row in found.items() if "absent" in row}
    height, width = options.size
    bars = {
        row["model"]: {name: row[f"{name} s"] for name in ("inference", "training step") if f"{name} s" in row}
        for row in rows
        if "inference s" in row or "training step s" in row
    }
    save(stem, f"Peers: one image of {height} x {width}, random weights", facts, rows, absent, bars, "s", "linear")


def _transformers() -> str:
    try:
        import transformers
    except ImportError:
        return "absent"
    return transformers.__version__


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--passes", nargs="+", choices=_PASSES, default=_PASSES)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--targets", type=int, default=30, help="objects of the training image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="limit for all repeats of one call")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small stand-ins for all models, to try the script")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/peers-DEVICE")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "PASS"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.threads == 1 and device.type == "cpu":
        use_cpu_time()
    if options.only:
        print(json.dumps(measure(*options.only, options)))
        return 0
    found: dict[tuple[str, str], dict[str, Any]] = {}
    stem = options.output or ROOT / "benchmarks" / "results" / f"peers-{device.type}"
    for kind in options.passes:
        for name in options.models:
            found[name, kind] = in_a_process(name, kind, arguments)
            print(f"{name}, {kind}: {describe(found[name, kind])}", flush=True)
            # Saved each time, because a run takes minutes and may be stopped.
            _save(found, options, stem)
    print(table(rows_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
