#!/usr/bin/env python
"""Multi-scale deformable attention side by side: our backends against each other and against what else one could take.

    python benchmarks/deformable_attention.py [--size 800 1344] [--batch 1] [--threads 1] [--device cpu] [--output DIR]

A call is that of one encoder layer of the published pixel decoder (8 heads of 32 channels, 4 points, maps of strides 8,
16 and 32, one query a position), sampling around each position as a layer does at its start, jittered. Peers: the
`grid_sample` form as it is (`reference`) and through `torch.compile`, and the kernels of torch-ms-deform-attn where it
is installed. Programs take turns in one process, so that their ratios can be compared between machines; times can't.

Prints, for each type and direction, the median time, how many times longer than ours it is, the peak memory above the
inputs, and the difference from the reference in float64 (norm of it over norm of the result, or of the gradient that is
furthest off). The limits are those of the same machine in the same run: every input and result moved once at the rate
of a copy, and the multiplications and additions of bilinear sampling at the rate of a matrix product. `--output` also
writes the table, JSON and a chart.
"""

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import MSDeformAttn, ms_deform_attn

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (32, 16, 8)
PEER = "torch-ms-deform-attn"
DTYPES = (torch.float32, torch.bfloat16)
DIRECTIONS = ("forward", "forward + backward")
Program = Callable[..., Tensor]
COLUMNS = ("program", "type", "direction", "ms", "times ours", "peak MiB", "difference")


def inputs(shapes: list[tuple[int, int]], batch: int, device: torch.device) -> list[Tensor]:
    """Value, locations, weights and a gradient of the result."""
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
    """What is compared, ours first; None for what is absent."""
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


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """Bytes in use at the worst moment of a call above those before it; None where the system does not tell."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return None
    # Freed memory goes back to the system, and the kernel forgets the process's peak so far.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def compare(
    candidates: dict[str, Program | None], tensors: list[Tensor], dtype: torch.dtype, backward: bool, repeats: int
) -> list[dict[str, Any]]:
    """Time all programs in one type and direction, taking turns; one row each."""
    device = tensors[0].device
    *leaves, gradient = (x.detach().to(dtype) for x in tensors)
    programs = {name: program for name, program in candidates.items() if program is not None}
    exact = _call(programs["reference"], [x.double() for x in leaves], gradient.double(), backward)
    measured: dict[str, dict[str, Any]] = {}
    for name, program in programs.items():
        pairs = zip(_call(program, leaves, gradient, backward), exact, strict=True)
        measured[name] = {"difference": max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)}
    del exact
    calls = {name: partial(_call, program, leaves, gradient, backward) for name, program in programs.items()}
    times = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(repeats)]
    for name, call in calls.items():
        peak = peak_memory(call, device)
        measured[name]["ms"] = 1e3 * statistics.median(once[name] for once in times)
        measured[name]["times ours"] = measured[name]["ms"] / measured[next(iter(calls))]["ms"]
        measured[name]["peak MiB"] = None if peak is None else peak / 2**20
    common = {"type": str(dtype).removeprefix("torch."), "direction": DIRECTIONS[backward]}
    return [{"program": name, **common, **measured.get(name, {"ms": "absent"})} for name in candidates]


def _call(program: Program, leaves: list[Tensor], gradient: Tensor, backward: bool) -> tuple[Tensor, ...]:
    """The result, or the result and all gradients."""
    if not backward:
        with torch.no_grad():
            return (program(*leaves),)
    leaves = [x.detach().requires_grad_() for x in leaves]
    output = program(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, gradient)


def limits(tensors: list[Tensor], dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Rows for moving all inputs and results once, and for the arithmetic alone, at rates measured here."""
    device = tensors[0].device
    numbers = sum(x.numel() for x in tensors)  # the gradient of the result is as large as the result
    source = torch.ones(64 * 2**20 // dtype.itemsize, dtype=dtype, device=device)
    target, square = torch.empty_like(source), torch.ones(1024, 1024, dtype=dtype, device=device)
    copy = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(2 * repeats))
    product = statistics.median(seconds(lambda: square @ square, device) for _ in range(2 * repeats))
    rows = []
    # Backward reads the same and writes as much again; it multiplies each cell twice and adds twice as much.
    for direction, factor in zip(DIRECTIONS, (1, 3), strict=True):
        bytes_moved, flops = factor * numbers * dtype.itemsize, factor * 2 * 4 * tensors[2].numel() * CHANNELS
        common = {"type": str(dtype).removeprefix("torch."), "direction": direction}
        rate = 2 * 64 * 2**20 / copy
        rows.append({"program": f"limit: bytes at {rate / 1e9:.1f} GB/s", **common, "ms": 1e3 * bytes_moved / rate})
        rate = 2 * 1024**3 / product
        rows.append({"program": f"limit: FLOPs at {rate / 1e9:.0f} G/s", **common, "ms": 1e3 * flops / rate})
    return rows


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    versions = {package: installed.get(package, "absent") for package in ("torch", "triton", PEER)}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **versions}
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def chart(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Bars of all programs: how many times longer than ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row.get("times ours")]
    groups = list(dict.fromkeys((row["type"], row["direction"]) for row in measured))
    names = list(dict.fromkeys(row["program"] for row in measured))
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for index, name in enumerate(names):
        heights = {(r["type"], r["direction"]): r["times ours"] for r in measured if r["program"] == name}
        positions = [group + 0.8 * (index / len(names)) for group in range(len(groups))]
        bars = axes.bar(positions, [heights[group] for group in groups], 0.8 / len(names), label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks([group + 0.3 for group in range(len(groups))], [f"{a}\n{b}" for a, b in groups])
    axes.set_ylabel("time / ours")
    axes.set_title(title, fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print a table, save it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write deformable_attention_DEVICE.{md,json,png} there"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = [(-(-args.size[0] // stride), -(-args.size[1] // stride)) for stride in STRIDES]
    tensors = inputs(shapes, args.batch, args.device)
    candidates = programs(shapes, args.device, not args.no_compile)
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        for backward in (False, True):
            rows += compare(candidates, tensors, dtype, backward, args.repeats)
        rows += limits(tensors, dtype, args.repeats)
    setup = {"maps": shapes, "batch": args.batch, "repeats": args.repeats, **environment(args.device)}
    title = ", ".join(f"{key} {value}" for key, value in setup.items())
    cells = [[row.get(column) for column in COLUMNS] for row in rows]
    text = tabulate(cells, COLUMNS, "github", floatfmt=("", "", "", ".1f", ".2f", ".0f", ".1e"))
    print(title, text, sep="\n\n")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / f"deformable_attention_{args.device.type}"
        command = " ".join(["python", "benchmarks/deformable_attention.py", *sys.argv[1:]])
        path.with_suffix(".md").write_text(f"`{command}`\n\n{title}\n\n{text}\n")
        path.with_suffix(".json").write_text(json.dumps({"command": command, **setup, "rows": rows}, indent=1) + "\n")
        chart(rows, title, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
