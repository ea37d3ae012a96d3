#!/usr/bin/env python
"""The effect of `MODEL.COMPILE`: backbone and head with and without `torch.compile`.

    python benchmarks/compile.py [--settings coco-panoptic ...] [--size 480 640] [--device cpu] [--output STEM]
        [--precisions float32 bfloat16] [KEY VALUE ...]

Weights are random; bfloat16 is autocast as with `TEST.AMP`. Prints for each part the seconds of the first compiled call
(including compilation), the median seconds of later calls with and without compilation, their ratio, and the largest
difference of the results relative to the largest value. A graph break is an error.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from _measure import describe, machine, save, seconds, synchronize, table
from _settings import ROOT, read_config
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former import MaskFormer
from mask2former.engine import available_device
from mask2former.model_zoo import SETTINGS


def compare(
    model: MaskFormer, size: tuple[int, int], precision: str, backend: str, repeats: int
) -> list[dict[str, Any]]:
    """Measure backbone and head, and return a row for each."""
    image = torch.randn(1, 3, *size, device=model.device)
    with torch.inference_mode(), _autocast(precision, model.device):
        features = model.backbone(image)
        head = model.sem_seg_head
        parts: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
            ("backbone", model.backbone, (image,)),
            ("head", head, (features, False)),
        ]
        return [
            {"part": name, **_compare(module, arguments, model.device, backend, repeats)}
            for name, module, arguments in parts
        ]


def _compare(
    module: nn.Module, arguments: tuple[Any, ...], device: torch.device, backend: str, repeats: int
) -> dict[str, Any]:
    compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)
    expected = _tensors(module(*arguments))
    start = time.perf_counter()
    got = _tensors(compiled(*arguments))
    synchronize(device)
    first = time.perf_counter() - start
    plain = seconds(lambda: module(*arguments), repeats, device)
    fast = seconds(lambda: compiled(*arguments), repeats, device)
    difference = max(float((got[k] - x).abs().max() / x.abs().max()) for k, x in expected.items())
    return {
        "first call s": first,
        "plain s": plain,
        "compiled s": fast,
        "plain / compiled": plain / fast,
        "difference": difference,
    }


def _tensors(outputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x.float() for name, x in outputs.items() if isinstance(x, Tensor)}


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["coco-panoptic"], metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/compile-DEVICE")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    args = parser.parse_intermixed_args()
    rows = []
    device = torch.device("cpu")
    for setting in args.settings:
        cfg = read_config(setting, [*(["MODEL.DEVICE", args.device] if args.device else []), *args.opts])
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit=args.device is not None)
        device = torch.device(cfg.MODEL.DEVICE)
        model = build_model(cfg).eval()
        for precision in args.precisions:
            facts = {"setting": setting, "precision": precision}
            rows += [facts | row for row in compare(model, tuple(args.size), precision, args.backend, args.repeats)]
            torch.compiler.reset()
    title = f"torch.compile ({args.backend}) of an input of {args.size[0]} x {args.size[1]}"
    facts = machine(device)
    bars = {
        f"{row['setting']}, {row['part']}, {row['precision']}": {
            "plain": row["plain s"],
            "compiled": row["compiled s"],
        }
        for row in rows
    }
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    save(args.output or ROOT / f"benchmarks/results/compile-{device.type}", title, facts, rows, {}, bars, "s")


if __name__ == "__main__":
    main()
