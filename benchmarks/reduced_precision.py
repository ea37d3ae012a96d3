#!/usr/bin/env python
"""The network in bfloat16 and with int8 linear layers, compared with float32 on a CPU.

    python benchmarks/reduced_precision.py [--setting coco-panoptic] [--size 512 640] [--programs NAME ...]
        [--parts NAME ...] [--output STEM] [KEY VALUE ...]
    python benchmarks/reduced_precision.py --evaluate --config-file FILE MODEL.WEIGHTS FILE [KEY VALUE ...]

The programs are float32; bfloat16, as with TEST.AMP; and linear layers in int8, activations quantized for each call:
`torchao` (per token, through `torch.compile` with frozen weights, where it reaches oneDNN's kernels) and `torch.ao`
(PyTorch's own `quantize_dynamic`, per tensor, which is deprecated). A library that is missing is named in the table.
int8 is tried in the backbone; in the backbone and the encoder of the pixel decoder; and in all linear layers.

Without `--evaluate`, weights are random and the programs take turns on one image: median seconds of the network, its
speed-up, and the relative difference of the mask logits. A program whose call takes longer than 20 seconds runs once.
With it, the table shows the metrics of an evaluation on DATASETS.TEST, for example of the model that
`demo/shapes_demo.py` trains.
"""

import argparse
import importlib
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _measure import SECONDS, describe, machine, save, seconds, table, use_cpu_time
from _settings import ROOT, read_config
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from dinat_common.errors import report_errors
from mask2former import MaskFormer
from mask2former.checkpoint import Checkpointer
from mask2former.config import setup_cfg
from mask2former.engine import trainer
from mask2former.model_zoo import SETTINGS
from mask2former.modeling.meta_arch.base import round_weights

PROGRAMS = ("float32", "bfloat16", "torchao", "torch.ao")
# Prefixes of the names of the modules whose linear layers are quantized.
PARTS = {
    "backbone": ("backbone",),
    "backbone and encoder": ("backbone", "sem_seg_head.pixel_decoder.transformer"),
    "all": ("",),
}


class AbsentError(Exception):
    """A library is missing or can't quantize."""


def quantize_with_torchao(model: MaskFormer, chosen: set[str]) -> None:
    """Quantize linear layers with torchao and compile backbone and head, which makes its kernels fast."""
    try:
        library = importlib.import_module("torchao.quantization")
        importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")  # registers fused kernels
    except ImportError as error:
        raise AbsentError(f"torchao: {error}") from error
    # Sums of two products overflow 16 bits on CPUs without VNNI unless values have 7 bits.
    vnni = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_vnni", False)
    kind = library.Int8DynamicActivationInt8WeightConfig(reduce_range=not vnni)
    library.quantize_(model, kind, lambda _, name: name in chosen)
    torch._inductor.config.freezing = True  # the kernels take weights that are constants of the graph
    model.backbone.compile(dynamic=False)
    model.sem_seg_head.compile(dynamic=False)


def quantize_with_torch(model: MaskFormer, chosen: set[str]) -> None:
    """Quantize linear layers with `torch.ao.quantization`."""
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic  # ty: ignore[deprecated]
    except ImportError as error:
        raise AbsentError(f"torch.ao.quantization: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        quantize_dynamic(model, dict.fromkeys(chosen, per_channel_dynamic_qconfig), inplace=True)  # ty: ignore[deprecated]


_QUANTIZE: dict[str, Callable[[MaskFormer, set[str]], None]] = {
    "torchao": quantize_with_torchao,
    "torch.ao": quantize_with_torch,
}


def build(cfg: CfgNode, program: str, part: str) -> MaskFormer:
    """Build the model of a program with MODEL.WEIGHTS, or with random weights that are the same for all.

    Raises:
        AbsentError: The library of the program is missing.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.AMP = program == "bfloat16"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    round_weights(model)
    if program in _QUANTIZE:
        # The attention of the transformer decoder reads the weight of `out_proj` of a subclass, which stays.
        layers = {name for name, layer in model.named_modules() if type(layer) is nn.Linear}
        _QUANTIZE[program](model, {name for name in layers if name.startswith(PARTS[part])})
    return model


def cases(programs: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """Programs with the part that they quantize, "" if they quantize none."""
    return [(program, part) for program in programs for part in (parts if program in _QUANTIZE else [""])]


def time_network(cfg: CfgNode, programs: Sequence[tuple[str, str]], size: tuple[int, int], repeats: int) -> list[dict]:
    """Rows with the median seconds of the network, its speed-up, and the difference of its mask logits."""
    device = torch.device("cpu")
    inputs = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    masks: dict[tuple[str, str], Tensor] = {}
    with torch.no_grad():  # frozen weights of a graph are no inference tensors
        for key in programs:
            program, part = key
            rows[key] = {"program": program, "int8 layers": part}
            try:
                model = build(cfg, program, part)
                masks[key] = model.predict([inputs])[0].masks
            except AbsentError as error:
                rows[key]["absent"] = str(error)
                continue
            calls[key] = lambda model=model: model.predict([inputs])
            times[key] = []
        for _ in range(repeats):
            for key, call in calls.items():
                if not times[key] or times[key][0] < SECONDS:
                    times[key].append(seconds(call, 1, device, budget=0))
    median = {key: statistics.median(values) for key, values in times.items()}
    for key, expected in median.items():
        rows[key]["s"] = expected
        for base in ("float32", "bfloat16"):
            if (base, "") in median:
                rows[key][f"{base} / it"] = median[base, ""] / expected
        if ("float32", "") in masks:
            exact = masks["float32", ""]
            rows[key]["difference"] = float((masks[key] - exact).norm() / exact.norm())
    return list(rows.values())


def evaluate(cfg: CfgNode, programs: Sequence[tuple[str, str]]) -> list[dict]:
    """Rows with the metrics of each program on DATASETS.TEST."""
    rows = []
    for program, part in programs:
        row: dict[str, Any] = {"program": program, "int8 layers": part}
        rows.append(row)
        try:
            model = build(cfg, program, part)
        except AbsentError as error:
            row["absent"] = str(error)
            continue
        # Packed weights of quantize_dynamic are no tensors, so they have no digest.
        digest = mock.patch.object(trainer, "weights_digest", return_value="")
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), digest:
            run_cfg = cfg.clone()
            run_cfg.defrost()
            run_cfg.OUTPUT_DIR = folder
            results = trainer.Trainer.test(run_cfg, model)
        for task, metrics in results.items():
            row |= {f"{task} {name}": metrics[name] for name in ("PQ", "AP", "mIoU") if name in metrics}
        print(row, flush=True)
        torch.compiler.reset()
    return rows


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=list(SETTINGS), default="coco-panoptic", metavar="NAME")
    parser.add_argument("--config-file", type=Path, help="a config instead of a setting")
    parser.add_argument("--evaluate", action="store_true", help="metrics on DATASETS.TEST instead of times")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="NAME")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["all"], help="where int8 is tried")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="cpu: of one thread on a busy machine")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/reduced-precision-cpu")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    args = parser.parse_intermixed_args()
    if args.clock == "cpu":
        use_cpu_time()
    torch.set_num_threads(args.threads)
    opts = ["MODEL.DEVICE", "cpu", *args.opts]
    cfg = setup_cfg(args.config_file, opts) if args.config_file else read_config(args.setting, opts)
    programs = cases(args.programs, args.parts)
    if args.evaluate:
        logging.getLogger("mask2former").setLevel(logging.WARNING)
        rows, title = evaluate(cfg, programs), "Metrics in bfloat16 and with int8 linear layers"
    else:
        rows = time_network(cfg, programs, tuple(args.size), args.repeats)
        title = f"The network in bfloat16 and with int8 linear layers at {args.size[0]} x {args.size[1]}"
    facts = machine(torch.device("cpu")) | {"capabilities": capabilities()}
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    name = "reduced-precision-metrics" if args.evaluate else "reduced-precision"
    save(args.output or ROOT / f"benchmarks/results/{name}-cpu", title, facts, rows, {})


def capabilities() -> str:
    """Names of the instructions of this CPU that matter here; "none of them" or "unknown" otherwise."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    names = [name for name in ("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if known.get(name)]
    return " ".join(names) or ("none of VNNI, BF16, AMX" if known else "unknown")


if __name__ == "__main__":
    with report_errors():
        main()
