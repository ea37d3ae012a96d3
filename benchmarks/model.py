#!/usr/bin/env python
"""Time of each part of a published setting, from an image file to an encoded result, or in a training step.

    python benchmarks/model.py [--settings coco-panoptic ...] [--size 480 640] [--output STEM] [KEY VALUE ...]
    python benchmarks/model.py --train [--size 1024 1024] [--targets 30] [KEY VALUE ...]
    python benchmarks/model.py --whole | --operators [--size 480 640] [KEY VALUE ...]

Weights are random, and all queries take part in the results (OBJECT_MASK_THRESHOLD 0), the most work for
post-processing. Prints the median seconds of each part, its share, and the peak memory of the process or of the GPU.
Ratios between parts come from one run, so they can be compared between machines; times can't.

`--whole` times the model alone, from an image in memory to results, without waiting for a GPU between its parts.
`--operators` prints the time of the network by kind of operator (of kernel on a GPU), and the time that its FLOPs need
at the rate of a product of two matrices of 2048 x 2048, measured in turns, as a share of the network's time. The FLOPs
are those of the papers (see mask2former/analysis/costs.py), with masks of full size after each layer; predictions leave
out about 3 % of them.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _measure import describe, gemm_rate, machine, save, synchronize, table
from _measure import seconds as median_seconds
from _operators import breakdown
from _settings import ROOT, read_config
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor, nn

import dinat_backbone.blocks as attention_module
from mask2former import MaskFormer
from mask2former.analysis.costs import count_costs
from mask2former.analysis.networks import build_network
from mask2former.data.dataset_mapper import TestMapper
from mask2former.engine import available_device
from mask2former.evaluation import peak_memory
from mask2former.model_zoo import SETTINGS
from mask2former.modeling import inference
from mask2former.solver import build_optimizer
from mask2former.utils.label_images import encode_masks, encode_png, ids_to_colors

# Timed layers of the backbone by kind; the rest are permutations, residual sums and the like.
_KINDS = {nn.Linear: "linear", nn.LayerNorm: "norm", nn.GELU: "GELU", nn.Conv2d: "convolution"}
_WHOLE = "backbone"
# By the option, which also names the files.
_TITLES = {
    "train": "A training step on one image",
    "whole": "From an image in memory to a result",
    "operators": "The network by kind of operator",
    "model": "From an image file to an encoded result",
}


class Stopwatch:
    """Adds up the seconds of named parts, on a CPU or a GPU."""

    def __init__(self, device: torch.device):
        """Start without parts."""
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Current time in seconds, after waiting for the device."""
        synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Generator[None, None, None]:
        """Time the block."""
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def watch(self, module: nn.Module, name: str) -> None:
        """Time the calls of a module from now on."""
        starts: list[float] = []

        def stop(*_: Any) -> None:
            self.seconds[name] += self.now() - starts.pop()

        module.register_forward_pre_hook(lambda *_: starts.append(self.now()))
        module.register_forward_hook(stop)

    def patch(self, owner: Any, function: str, name: str) -> AbstractContextManager[Any]:
        """Return a context in which the calls of a function of a module are timed."""
        call: Callable[..., Any] = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return mock.patch.object(owner, function, timed)


def watch_parts(model: MaskFormer, stopwatch: Stopwatch) -> None:
    """Time the parts of a model."""
    stopwatch.watch(model.backbone, _WHOLE)
    stopwatch.watch(model.sem_seg_head.pixel_decoder, "pixel decoder")
    stopwatch.watch(model.sem_seg_head.predictor, "transformer decoder")
    stopwatch.watch(model.criterion, "criterion")


def encode(results: dict[str, Any]) -> None:
    """Encode results in the submission formats of the benchmarks."""
    if "panoptic_seg" in results:
        encode_png(ids_to_colors(results["panoptic_seg"][0].cpu().numpy()))
    if "sem_seg" in results:
        encode_png(results["sem_seg"].cpu().numpy().astype(np.uint8))
    if "instances" in results:
        encode_masks(results["instances"].pred_masks)


def predict(cfg: CfgNode, image: Path, repeats: int) -> dict[str, float]:
    """Median seconds of each part of predicting an image file."""
    model = build_model(cfg).eval()
    settings = replace(model.inference_settings, semantic_scores=False)
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")
    mapper = TestMapper(T.AugmentationList([resize]), cfg.INPUT.FORMAT)
    stopwatch = Stopwatch(model.device)
    watch_parts(model, stopwatch)
    for layer in model.backbone.modules():
        if type(layer) in _KINDS:
            stopwatch.watch(layer, f"{_WHOLE}: {_KINDS[type(layer)]}")

    def once() -> None:
        with torch.inference_mode():
            with stopwatch.part("data"):
                inputs = mapper({"file_name": str(image)})
            with stopwatch.part("model"):
                (results,) = model([inputs], settings=settings)
            with stopwatch.part("encoding"):
                encode(results)

    attention = stopwatch.patch(attention_module, "neighborhood_attention_2d", f"{_WHOLE}: attention")
    with attention, stopwatch.patch(inference, "run", "post-processing"):
        return _medians(once, stopwatch, repeats)


def predict_whole(cfg: CfgNode, size: tuple[int, int], repeats: int) -> list[dict[str, Any]]:
    """Row with the median seconds of a prediction of an image in memory, and those of the first one."""
    model = build_model(cfg).eval()
    settings = replace(model.inference_settings, semantic_scores=False)
    inputs = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    with torch.inference_mode():
        start = time.perf_counter()
        model([inputs], settings=settings)
        synchronize(model.device)
        first = time.perf_counter() - start
        median = median_seconds(lambda: model([inputs], settings=settings), repeats, model.device)
    return [{"part": "model", "s": median, "first call s": first}]


def operators(cfg: CfgNode, size: tuple[int, int], repeats: int) -> list[dict[str, Any]]:
    """Rows with the seconds of each kind of operator of the network, and of the network beside its limit."""
    model = build_model(cfg).eval()
    inputs = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    dtype = torch.bfloat16 if cfg.TEST.AMP else torch.float32
    with torch.inference_mode():
        model.predict([inputs])
        # Taken in turns, because the speed of a shared machine changes within seconds.
        pairs = [
            (gemm_rate(dtype, model.device), median_seconds(lambda: model.predict([inputs]), 1, model.device, 0.0))
            for _ in range(repeats)
        ]
        rate, whole = (statistics.median(values) for values in zip(*pairs, strict=True))
        kinds = breakdown(lambda: model.predict([inputs]), model.device)
    limit = 2 * count_costs(build_network(cfg), size).multiply_adds / rate
    rows = [{"part": row["kind"], "s": row["s"], "% of all": row["%"], "calls": row["calls"]} for row in kinds]
    return [*rows, {"part": "network", "s": whole, "limit s": limit, "% of limit": 100 * limit / whole}]


def train(cfg: CfgNode, size: tuple[int, int], targets: int, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a training step on one image."""
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch = [training_input(size, targets, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    stopwatch = Stopwatch(model.device)
    watch_parts(model, stopwatch)

    def once() -> None:
        with stopwatch.part("forward"), torch.autocast(model.device.type, torch.bfloat16, cfg.SOLVER.AMP.ENABLED):
            total = sum(model(batch).values(), torch.zeros((), device=model.device))
        with stopwatch.part("backward"):
            total.backward()
        with stopwatch.part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return _medians(once, stopwatch, repeats)


def training_input(size: tuple[int, int], targets: int, classes: int) -> dict[str, Any]:
    """Create a training input of noise with rectangles as targets."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    masks = torch.zeros(targets, height, width, dtype=torch.bool)
    for target in masks:
        top, left = (int(torch.randint(side // 2, (), generator=generator)) for side in size)
        target[top : top + height // 4, left : left + width // 4] = True
    instances = Instances(size)
    instances.gt_masks = masks
    instances.gt_classes = torch.randint(classes, (targets,), generator=generator)
    image: Tensor = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances}


def _medians(once: Callable[[], None], stopwatch: Stopwatch, repeats: int) -> dict[str, float]:
    once()
    runs = []
    for _ in range(repeats):
        stopwatch.seconds.clear()
        once()
        runs.append(dict(stopwatch.seconds))
    return {part: statistics.median(run[part] for run in runs) for part in runs[0]}


def rows_of(seconds: dict[str, float], parts: Sequence[str], whole: float) -> list[dict[str, Any]]:
    """One row per part with its share; parts of the backbone also show their share of the backbone."""
    rows: list[dict[str, Any]] = []
    for part in parts:
        rows.append({"part": part, "s": seconds[part], "% of all": 100 * seconds[part] / whole})
        inside = {name: s for name, s in seconds.items() if name.startswith(f"{part}: ")}
        if inside:
            inside[f"{part}: rest"] = seconds[part] - sum(inside.values())
        rows += [
            {"part": name, "s": s, "% of all": 100 * s / whole, "% of backbone": 100 * s / seconds[part]}
            for name, s in inside.items()
        ]
    return [*rows, {"part": "all", "s": whole, "% of all": 100.0}]


def measure(setting: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a setting and return its rows."""
    cfg = read_config(setting, ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0", *args.opts])
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in args.opts)
    device = torch.device(cfg.MODEL.DEVICE)
    if args.whole or args.operators:
        run = operators if args.operators else predict_whole
        rows = run(cfg, tuple(args.size or (480, 640)), args.repeats)
        rows[-1] |= {"images a second": 1 / rows[-1]["s"], "peak GiB": peak_memory(device) / 2**30}
        return [{"setting": setting, **row} for row in rows]
    if args.train:
        seconds = train(cfg, tuple(args.size or (1024, 1024)), args.targets, args.repeats)
        whole = seconds.pop("forward") + seconds["backward"] + seconds["optimizer"]
        parts = [_WHOLE, "pixel decoder", "transformer decoder", "criterion", "backward", "optimizer"]
    else:
        height, width = args.size or (480, 640)
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder, "image.jpg")
            noise = np.random.RandomState(0).randint(0, 256, (height // 8, width // 8, 3), np.uint8)
            Image.fromarray(noise).resize((width, height)).save(image)
            seconds = predict(cfg, image, args.repeats)
        whole = seconds["data"] + seconds["model"] + seconds["encoding"]
        parts = ["data", _WHOLE, "pixel decoder", "transformer decoder", "post-processing", "encoding"]
    rows = rows_of(seconds, parts, whole)
    rows[-1] |= {"images a second": 1 / whole, "peak GiB": peak_memory(device) / 2**30}
    return [{"setting": setting, **row} for row in rows]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["coco-panoptic"], metavar="NAME")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--train", action="store_true", help="a training step instead of a prediction")
    kinds.add_argument("--whole", action="store_true", help="the model alone, not its parts")
    kinds.add_argument("--operators", action="store_true", help="the network by kind of operator")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of the image")
    parser.add_argument("--targets", type=int, default=30, help="segments of the training image")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, metavar="STEM", help="default: benchmarks/results/{model,train,whole,operators}-DEVICE"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    args = parser.parse_intermixed_args()
    rows = [row for setting in args.settings for row in measure(setting, args)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = next((kind for kind in _TITLES if getattr(args, kind, False)), "model")
    title = _TITLES[kind]
    facts = machine(device)
    bars = {
        f"{row['setting']}, {row['part']}": {"s": row["s"]} for row in rows if not row["part"].startswith(f"{_WHOLE}:")
    }
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    stem = args.output or ROOT / "benchmarks" / "results" / f"{kind}-{device.type}"
    save(stem, title, facts, rows, {}, bars, "s")


if __name__ == "__main__":
    main()
