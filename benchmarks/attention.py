#!/usr/bin/env python
"""Neighborhood attention side by side, at the shapes of DiNAT-Large and DiNAT-Mini: every stage, every dilation.

    python benchmarks/attention.py --quick           (DiNAT-L at 640 x 640, float32, against FlexAttention: minutes)
    python benchmarks/attention.py [--models large mini] [--images 640 640 800 1344] [--dtypes float32 bfloat16]
                                   [--peers flex-tiles ...] [--threads 2] [--device cpu] [--output STEM]
                                   [--backward-peers tiled ...] [--seconds 20]

Programs: ours (the backend that "auto" chooses, and "tiled"); `torch.compile`d FlexAttention with the same bias and a
block mask, on tokens sorted into residue groups and tiles of 8 x 16 ("flex-tiles"), into residue groups ("flex-groups",
for dilation 1 the same as "flex-rows") or row by row ("flex-rows"); sorting is not timed. "gather" gathers every
query's keys, as public reimplementations do. "dense" is one scaled_dot_product_attention with the bias of all pairs.
"natten" is NATTEN's own path, which has no bias and does less work than the others. A program that needs too much
memory or can't compute a case is listed as absent with the reason.

Ours is timed before and after its peers. The limit of a case is the longer of two times: its exact FLOPs (k * k keys
per query; 2 products forward, 7 forward + backward, because the backward pass computes scores again) at the rate of a
matrix product measured just before and after, and its bytes (all maps read or written once) at the measured rate of a
copy. Ratios come from one run, so they can be compared between machines; times can't. Writes STEM.json, STEM.md and
STEM.png.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _attention_programs import PEERS, Case, Inputs, arranged, cases
from _measure import (
    SECONDS,
    copy_rate,
    describe,
    gemm_rate,
    kernel_seconds,
    machine,
    peak_memory,
    save,
    seconds,
    table,
    use_cpu_time,
)

ROOT = Path(__file__).resolve().parents[1]
_FORWARD, _BOTH = "forward", "forward + backward"


def measure(inputs: Inputs, name: str, backward: bool, repeats: int, budget: float = SECONDS) -> dict[str, float]:
    """Measure seconds, on a GPU also those of kernels, and peak MB of a program, and its difference from `tiled`.

    Raises:
        ValueError: The program can't serve this case.
    """
    program = inputs.program(name)
    maps = arranged(program, inputs.maps)
    if not backward:
        with torch.no_grad():
            expected = arranged(program, [inputs.program("tiled")(*inputs.maps)])[0]
            # NATTEN computes attention without bias.
            difference = math.nan if name == "natten" else float((program(*maps) - expected).abs().max())
            memory = peak_memory(lambda: program(*maps), inputs.device)
            time = seconds(lambda: program(*maps), repeats, inputs.device, budget)
            kernels = kernel_seconds(lambda: program(*maps), inputs.device)
            return {"s": time, "kernel s": kernels, "MB": memory, "diff": difference}
    if name.startswith(("flex", "natten")) and inputs.device.type == "cpu":
        raise ValueError("FlexAttention, which NATTEN calls on CPUs, has no backward pass there")
    leaves = [x.detach().requires_grad_() for x in maps]
    # Peers that hold the bias in another form compute only the gradients of the maps.
    wanted = [*leaves, inputs.rpb.requires_grad_()] if name in ("auto", "tiled", "triton", "gather") else leaves
    gradient = torch.ones_like(leaves[0])

    def both() -> None:
        torch.autograd.grad(program(*leaves), wanted, gradient)

    both()
    memory = peak_memory(both, inputs.device)
    time = seconds(both, repeats, inputs.device, budget)
    return {"s": time, "kernel s": kernel_seconds(both, inputs.device), "MB": memory, "diff": math.nan}


def measure_if_possible(
    inputs: Inputs, name: str, backward: bool, repeats: int, budget: float
) -> dict[str, float] | str:
    """Measure a program, or return the reason why it can't serve this case."""
    try:
        return measure(inputs, name, backward, repeats, budget)
    # A RuntimeError is what compilers and libraries raise.
    except (ValueError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def compare(
    case: Case, dtype: torch.dtype, backward: bool, options: argparse.Namespace, copied: float, absent: dict[str, str]
) -> dict[str, Any]:
    """Measure a case and return one row of the table."""
    device = torch.device(options.device)
    inputs = Inputs(case, dtype, device)
    before = gemm_rate(dtype, device)
    ours = measure(inputs, options.ours, backward, options.repeats, options.seconds)
    products, maps = (7, 11) if backward else (2, 4)
    flops = 2 * products * case.elements * case.kernel_size**2
    peers = {}
    for name in options.backward_peers if backward else options.peers:
        peer = measure_if_possible(inputs, name, backward, options.repeats, options.seconds)
        if isinstance(peer, str):
            absent[f"{name}, {case}, {_BOTH if backward else _FORWARD}, {dtype}"] = peer
        else:
            peers[name] = peer
    # Measured again, because disturbances come and go.
    ours["s"] = (ours["s"] + measure(inputs, options.ours, backward, options.repeats, options.seconds)["s"]) / 2
    rate = max(before, gemm_rate(dtype, device))
    limit = max(flops / rate, maps * case.elements * inputs.maps[0].element_size() / copied)
    row = {
        "case": str(case),
        "image": "x".join(map(str, case.image)),
        "layers": case.layers,
        "type": str(dtype).removeprefix("torch."),
        "pass": _BOTH if backward else _FORWARD,
        "ours ms": 1e3 * ours["s"],
        "limit ms": 1e3 * limit,
        "% of limit": 100 * limit / ours["s"],
        "GEMM GFLOP/s": rate / 1e9,
        **_kernel_columns("ours", ours, ours),
        "ours MB": ours["MB"],
        "in + out MB": 4 * case.elements * inputs.maps[0].element_size() / 1e6,
        "difference": ours["diff"],
    }
    for name, peer in peers.items():
        row |= {f"{name} ms": 1e3 * peer["s"], f"{name} / ours": peer["s"] / ours["s"], f"{name} MB": peer["MB"]}
        row |= _kernel_columns(name, peer, ours)
        row["difference"] = max(row["difference"], peer["diff"]) if peer["diff"] == peer["diff"] else row["difference"]
    return row


def _kernel_columns(name: str, numbers: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Columns for the time of kernels alone, without the gaps between them; empty where it is unknown."""
    if math.isnan(numbers["kernel s"]):
        return {}
    ratio = {} if numbers is ours else {f"{name} / ours, kernels": numbers["kernel s"] / ours["kernel s"]}
    return {f"{name} kernels ms": 1e3 * numbers["kernel s"], **ratio}


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sums over the layers of each model and image size, and their ratios."""
    result: dict[str, float] = {}
    groups = dict.fromkeys((row["case"].split()[0], row["image"], row["type"]) for row in rows)
    for group in groups:
        name = " ".join(group)
        chosen = [row for row in rows if (row["case"].split()[0], row["image"], row["type"]) == group]
        sums = {}
        for kind in (_FORWARD, _BOTH):
            part = [row for row in chosen if row["pass"] == kind]
            if not part:
                continue
            sums[kind] = sum(row["layers"] * row["ours ms"] for row in part)
            result[f"{name}, {kind}: {sum(row['layers'] for row in part)} layers, ms"] = sums[kind]
            limit = sum(row["layers"] * row["limit ms"] for row in part)
            result[f"{name}, {kind}: % of limit"] = 100 * limit / sums[kind]
            result[f"{name}, {kind}: most memory / (inputs + outputs)"] = max(
                row["ours MB"] / row["in + out MB"] for row in part
            )
            for peer, time in product(PEERS, ("ms", "kernels ms")):
                times = [
                    (row["layers"] * row[f"{peer} {time}"], row["layers"] * row[f"ours {time}"])
                    for row in part
                    if f"{peer} {time}" in row and f"ours {time}" in row
                ]
                if times:
                    theirs, ours = (sum(x) for x in zip(*times, strict=True))
                    note = "" if len(times) == len(part) else f" ({len(times)} of {len(part)} cases)"
                    note += ", kernels" if time != "ms" else ""
                    result[f"{name}, {kind}: {peer} / ours{note}"] = theirs / ours
        if len(sums) == 2:
            result[f"{name}: forward + backward / forward"] = sums[_BOTH] / sums[_FORWARD]
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DiNAT-L, 640 x 640, float32, flex-tiles and tiled only")
    parser.add_argument("--models", nargs="+", default=["large", "mini"], help="files dinat_*.yaml of configs/_base_")
    parser.add_argument("--images", nargs="+", type=int, default=[640, 640, 800, 1344], help="heights and widths")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--passes", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    parser.add_argument("--ours", choices=("auto", "triton"), default="auto", help="backend that is compared")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--backward-peers", nargs="*", choices=PEERS, help="default: those of --peers")
    parser.add_argument("--dilations", nargs="+", type=int, help="only these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds; for --threads 1 on a busy machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for all repeats of one call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/attention-DEVICE")
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.images, options.dtypes = ["large"], [640, 640], ["float32"]
        options.peers = ["tiled", "flex-tiles"]
    if options.backward_peers is None:
        options.backward_peers = options.peers
    torch.set_num_threads(options.threads)
    if options.cpu_time:
        use_cpu_time()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device(options.device)
    copied = copy_rate(device)
    facts = machine(device) | {
        "GEMM GFLOP/s": round(gemm_rate(torch.float32, device) / 1e9),
        "copy GB/s": round(copied / 1e9, 1),
    }
    print(describe(facts))
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    stem = options.output or ROOT / "benchmarks" / "results" / f"attention-{device.type}"
    for model in options.models:
        for image in zip(options.images[::2], options.images[1::2], strict=True):
            for case in cases(model, image):
                if options.dilations and case.dilation not in options.dilations:
                    continue
                for dtype in options.dtypes:
                    for kind in options.passes:
                        rows.append(compare(case, getattr(torch, dtype), kind == "backward", options, copied, absent))
                        print(
                            describe({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}),
                            flush=True,
                        )
                # Saved after each case, because a run may take an hour and be stopped.
                _save(stem, facts, rows, absent)
    print(table(rows))
    for name, value in summarize(rows).items():
        print(f"{name}: {value:.3g}")
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}")
    return 0


def _save(stem: Path, facts: dict[str, Any], rows: list[dict[str, Any]], absent: dict[str, str]) -> None:
    bars = {
        f"{row['case']} {row['type']}": {k.removesuffix(" ms"): v for k, v in row.items() if k.endswith(" ms")}
        for row in rows
        if row["pass"] == _FORWARD
    }
    sums = summarize(rows) | {f"absent: {k}": v for k, v in absent.items()}
    save(stem, "Neighborhood attention", facts, rows, sums, bars, "ms, forward")


if __name__ == "__main__":
    sys.exit(main())
