#!/usr/bin/env python
"""Multi-scale deformable attention: our backends against each other and against other implementations.

    python benchmarks/deformable_attention.py [--size 800 1344] [--batch 1] [--threads 1] [--output STEM]

Each call is one encoder layer of the published pixel decoder (8 heads of 32 channels, 4 points, maps of strides 8, 16
and 32, one query per position) that samples around each position like a newly initialised layer, with jitter. Peers:
the `grid_sample` form (`reference`), the same through `torch.compile`, and the kernels of torch-ms-deform-attn if it is
installed. Ratios come from one run, so they can be compared between machines; times can't.

Prints for each type and direction: the median time, its ratio to ours, the peak memory above the inputs, and the
difference from the reference in float64 (norm of the difference over norm of the result, or of the gradient with the
largest ratio). The limits are measured in the same run: every input and result moved once at the rate of a copy, and
the multiplications and additions of bilinear sampling at the rate of a matrix product. Writes STEM.md, STEM.json and a
chart, STEM.png.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from _measure import copy_rate, describe, gemm_rate, machine, peak_memory, save, seconds, table, use_cpu_time
from torch import Tensor

from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttn
from mask2former.modeling.pixel_decoder.ops import ms_deform_attn

RESULTS = Path(__file__).resolve().parent / "results"
HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (32, 16, 8)
PEER = "torch-ms-deform-attn"
DTYPES = (torch.float32, torch.bfloat16)
DIRECTIONS = ("forward", "forward + backward")
Program = Callable[..., Tensor]


def inputs(shapes: list[tuple[int, int]], batch: int, device: torch.device) -> list[Tensor]:
    """Create value, locations, weights and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    positions = sum(height * width for height, width in shapes)
    centres = []
    for height, width in shapes:
        y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        centres.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1))
    ring = MSDeformAttn(HEADS * CHANNELS, len(shapes), HEADS, POINTS).sampling_offsets.bias.detach()
    samples = (batch, positions, HEADS, len(shapes), POINTS)
    offsets = ring.view(*samples[2:], 2) + torch.randn(*samples, 2, generator=generator)
    cells = torch.tensor([(width, height) for height, width in shapes])[:, None]
    value = torch.randn(batch, positions, HEADS, CHANNELS, generator=generator)
    weights = torch.randn(samples, generator=generator).flatten(3).softmax(-1).view(samples)
    gradient = torch.randn(batch, positions, HEADS * CHANNELS, generator=generator)
    locations = torch.cat(centres)[None, :, None, None, None] + offsets / cells
    return [x.to(device) for x in (value, locations, weights, gradient)]


def programs(shapes: list[tuple[int, int]], device: torch.device, compiled: bool) -> dict[str, Program | None]:
    """Programs to compare by name, ours first; None for a program that is not installed."""
    ours = "gather" if device.type == "cpu" else "triton"

    def reference(*x: Tensor) -> Tensor:
        return ms_deform_attn(x[0], shapes, *x[1:], backend="reference")

    found: dict[str, Program | None] = {
        ours: lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend=ours),
        "reference": reference,
    }
    if compiled:
        found["reference, compiled"] = torch.compile(reference, fullgraph=True, dynamic=False)
    found[PEER] = _peer(shapes, device)
    return found


def _peer(shapes: list[tuple[int, int]], device: torch.device) -> Program | None:
    try:
        peer = import_module("torch_ms_deform_attn").ms_deform_attn
    except ImportError:
        return None
    sizes = torch.tensor(shapes, device=device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return lambda *x: peer(x[0], sizes, starts, *x[1:])


def compare(
    candidates: dict[str, Program | None], tensors: list[Tensor], dtype: torch.dtype, backward: bool, repeats: int
) -> list[dict[str, Any]]:
    """Measure all programs in one type and direction, and return one row for each."""
    device = tensors[0].device
    *leaves, gradient = (x.detach().to(dtype) for x in tensors)
    programs = {name: program for name, program in candidates.items() if program is not None}
    exact = _call(programs["reference"], [x.double() for x in leaves], gradient.double(), backward)
    measured: dict[str, dict[str, float]] = {}
    for name, program in programs.items():
        pairs = zip(_call(program, leaves, gradient, backward), exact, strict=True)
        measured[name] = {"difference": max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)}
    del exact
    calls = {name: partial(_call, program, leaves, gradient, backward) for name, program in programs.items()}
    for name, call in calls.items():
        measured[name]["ms"] = 1e3 * seconds(call, repeats, device)
        measured[name]["times ours"] = measured[name]["ms"] / measured[next(iter(calls))]["ms"]
        measured[name]["peak MB"] = peak_memory(call, device)
    common = {"type": str(dtype).removeprefix("torch."), "direction": DIRECTIONS[backward]}
    absent = {name: f"{name}: absent" for name in candidates if name not in programs}
    return [{"program": absent.get(name, name), **common, **measured.get(name, {})} for name in candidates]


def _call(program: Program, leaves: list[Tensor], gradient: Tensor, backward: bool) -> tuple[Tensor, ...]:
    """Return the result; with `backward`, also all gradients."""
    if not backward:
        with torch.no_grad():
            return (program(*leaves),)
    leaves = [x.detach().requires_grad_() for x in leaves]
    output = program(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, gradient)


def limits(tensors: list[Tensor], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows with the times of moving all inputs and results once, and of the arithmetic alone, at measured rates."""
    device = tensors[0].device
    copied, multiplied = copy_rate(device), gemm_rate(dtype, device)
    numbers = sum(x.numel() for x in tensors)  # the gradient of the result is as large as the result
    rows = []
    # The backward pass reads and writes as much again each, and does twice the arithmetic.
    for direction, factor in zip(DIRECTIONS, (1, 3), strict=True):
        common = {"type": str(dtype).removeprefix("torch."), "direction": direction}
        milliseconds = 1e3 * factor * numbers * dtype.itemsize / copied
        rows.append({"program": f"limit: bytes at {copied / 1e9:.1f} GB/s", **common, "ms": milliseconds})
        milliseconds = 1e3 * factor * 2 * 4 * tensors[2].numel() * CHANNELS / multiplied
        rows.append({"program": f"limit: FLOPs at {multiplied / 1e9:.0f} G/s", **common, "ms": milliseconds})
    return rows


def facts(device: torch.device) -> dict[str, Any]:
    """Device, versions and settings that the numbers depend on."""
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return machine(device) | {package: installed.get(package, "absent") for package in ("triton", PEER)}


def main() -> None:
    """Measure, print and save a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds; for --threads 1 on a busy machine")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--output", type=Path, metavar="STEM", help="default: benchmarks/results/deformable-attention-DEVICE"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cpu_time:
        use_cpu_time()
    shapes = [(-(-args.size[0] // stride), -(-args.size[1] // stride)) for stride in STRIDES]
    tensors = inputs(shapes, args.batch, args.device)
    candidates = programs(shapes, args.device, not args.no_compile)
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        for backward in (False, True):
            rows += compare(candidates, tensors, dtype, backward, args.repeats)
        rows += limits(tensors, dtype)
    title = f"Multi-scale deformable attention, maps {shapes}, batch {args.batch}, {args.repeats} repeats"
    conditions = facts(args.device)
    print(title, describe(conditions), table(rows), sep="\n\n")
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        if "times ours" in row:
            bars.setdefault(f"{row['type']}, {row['direction']}", {})[row["program"]] = row["ms"]
    stem = args.output or RESULTS / f"deformable-attention-{args.device.type}"
    save(stem, title, conditions, rows, {}, bars, "ms")


if __name__ == "__main__":
    main()
