#!/usr/bin/env python
"""Tile sizes of the Triton attention kernels, tried one after the other on a GPU: a table for triton_kernels/launch.py.

    python benchmarks/tune_attention.py [--model large] [--image 800 1344] [--dtypes bfloat16 float32]
                                        [--limit SECONDS] [--processes N] [--output STEM]

For each type and each of the four kernels, the settings (positions of a tile, positions of a block, warps, stages) that
fit into shared memory without many spilled registers are compiled in several processes, and then timed on all
dilations of the second and third stage, most of a model's layers. The time of a setting is that of the kernel alone,
added up over layers. The shipped setting comes first, so that the table always has it; a setting is used only if its
results equal those of the shipped one to within rounding. Ends in time, with what it has found so far.
"""

import argparse
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _attention_programs import ROOT, Case, Inputs, cases
from _measure import describe, kernel_seconds, machine, save, seconds, synchronize, table
from torch import Tensor
from triton_kernels import Compiler, compile_attention, resources

from dinat_backbone.ops.reference import Call
from dinat_backbone.ops.triton_kernels import launch
from dinat_backbone.ops.triton_kernels.launch import Launch, Launches, launches

# Kernels by the names of their settings.
FUNCTIONS = {
    "forward": "forward_kernel",
    "query": "query_gradient_kernel",
    "key": "key_gradient_kernel",
    "bias": "bias_gradient_kernel",
}
# Rows of the expanded bias before a window: enough for all settings, so that a setting changes no other kernel.
_LEAD = 160
# Bytes of spilled registers per thread from which a setting is not tried.
_MOST_SPILLED = 128
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def settings(kernel: str, shipped: Launch) -> Iterator[Launch]:
    """The shipped setting, then others of the same kernel, those near the shipped one first."""
    tiles, blocks = ((16, 32), (64, 128, 256)) if kernel == "bias" else ((16, 32, 64, 128), (32, 64, 128))
    others = [Launch(*choice) for choice in product(tiles, blocks, (2, 4, 8), (1, 2, 3))]

    def steps(other: Launch) -> int:
        pairs = ((other.tile, shipped.tile), (other.block, shipped.block), (other.warps, shipped.warps))
        return sum(abs(a.bit_length() - b.bit_length()) for a, b in pairs) + abs(other.stages - shipped.stages)

    yield shipped
    yield from sorted((other for other in others if other != shipped), key=steps)


def compile_setting(
    kernel: str, choice: Launch, chosen: Sequence[Case], dtype: torch.dtype, capability: int
) -> str | None:
    """Compile a setting into Triton's cache; return the reason not to try it, or None."""
    compiler = Compiler(capability, FUNCTIONS[kernel])
    try:
        with using(kernel, choice, dtype):
            for case in chosen:
                compile_attention(compiler, case, dtype)
        spilled = max(resources(compiled, capability)["spilled bytes"] for _, compiled in compiler.kernels)
    except Exception as error:  # noqa: BLE001 - compilers raise exceptions of any class
        return str(error).strip().splitlines()[-1][:100]
    return f"spills {spilled} bytes" if spilled > _MOST_SPILLED else None


@contextmanager
def using(kernel: str, choice: Launch, dtype: torch.dtype) -> Generator[None, None, None]:
    """Return a context in which one kernel runs with another setting, the bias being expanded enough for all."""
    changed: Launches = replace(launches(dtype, 32), **{kernel: choice})
    with (
        mock.patch.object(launch, "launches", lambda *_: changed),
        mock.patch.object(Launches, "lead", lambda *_: _LEAD),
    ):
        yield


class Run:
    """Forward and backward pass of a case, and the pass that one kernel belongs to."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        """Draw inputs, and compute what the backward pass needs."""
        inputs = Inputs(case, dtype, device)
        self.case = case
        query, key, value = inputs.maps
        self._call = Call(query, key, value, inputs.rpb, case.kernel_size, case.dilation, 32**-0.5)
        self._output, self._sums = launch.forward(self._call)
        self._gradient = torch.randn(self._output.shape, device=device).to(dtype)

    def once(self, kernel: str) -> tuple[Tensor, ...]:
        """Run the pass of a kernel."""
        if kernel == "forward":
            return launch.forward(self._call)
        return launch.backward(self._call, self._output, self._sums, self._gradient, kernel == "bias")


def tune(kernel: str, runs: Sequence[Run], choices: Sequence[Launch], end: float) -> Iterator[dict[str, Any]]:
    """Time settings until a moment, and yield a row for each."""
    dtype, device = runs[0]._output.dtype, runs[0]._output.device
    expected: list[tuple[Tensor, ...]] = []
    for choice in choices:
        if time.monotonic() > end:
            return
        row = {"tile": choice.tile, "block": choice.block, "warps": choice.warps, "stages": choice.stages}
        try:
            with using(kernel, choice, dtype):
                got = [run.once(kernel) for run in runs]
                expected = expected or got
                off = max(_difference(results, true) for results, true in zip(got, expected, strict=True))
                synchronize(device)
                spent = sum(run.case.layers * _seconds(run, kernel, device) for run in runs)
        except Exception as error:  # noqa: BLE001 - compilers and drivers raise exceptions of any class
            yield row | {"remark": str(error).strip().splitlines()[-1][:100]}
            continue
        yield row | {"ms": 1e3 * spent, "remark": "" if off <= _TOLERANCE[dtype] else f"results are off by {off:.1e}"}


def _seconds(run: Run, kernel: str, device: torch.device) -> float:
    alone = kernel_seconds(lambda: run.once(kernel), device, FUNCTIONS[kernel])
    # Without a GPU's counters, the time of the call has to do.
    return alone if alone == alone else seconds(lambda: run.once(kernel), 1, device, 0.2)


def _difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = [(a.float(), b.float()) for a, b in zip(results, expected, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, time, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="large", help="file dinat_*.yaml of configs/_base_")
    parser.add_argument("--image", nargs=2, type=int, default=(800, 1344))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--kernels", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--most", type=int, default=24, help="settings of a kernel")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for everything")
    parser.add_argument("--processes", type=int, default=12, help="0: compile when a setting is timed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/tune-attention")
    options = parser.parse_args(arguments)
    start, device = time.monotonic(), torch.device(options.device)
    stem = options.output or ROOT / "benchmarks" / "results" / "tune-attention"
    # Their sizes have the same factors, so that Triton makes two kernels for all of them.
    chosen = [case for case in cases(options.model, tuple(options.image)) if case.stage in (1, 2)]
    groups = list(product(options.dtypes, options.kernels))
    pool = ProcessPoolExecutor(max(1, options.processes), mp_context=get_context("spawn"))
    rows: list[dict[str, Any]] = []
    for number, (name, kernel) in enumerate(groups):
        dtype = getattr(torch, name)
        # Each group gets an equal part of the time that is left.
        begin = time.monotonic()
        end = begin + (start + options.limit - begin) / (len(groups) - number)
        choices = list(settings(kernel, getattr(launches(dtype, 32), kernel)))[: options.most]
        if options.processes:
            choices = _compiled(pool, kernel, choices, chosen, dtype, begin + (end - begin) / 2)
        runs = [Run(case, dtype, device) for case in chosen]
        for row in tune(kernel, runs, choices, end):
            first = next((r for r in rows if (r["type"], r["kernel"]) == (name, kernel)), row)
            speed = {"shipped / this": first["ms"] / row["ms"]} if "ms" in first and "ms" in row else {}
            rows.append({"type": name, "kernel": kernel, **row, **speed})
            print(describe(rows[-1]), flush=True)
        _save(stem, rows, device)
    pool.shutdown(wait=False, cancel_futures=True)
    print(table(_best(rows)))
    return 0


def _compiled(
    pool: ProcessPoolExecutor,
    kernel: str,
    choices: Sequence[Launch],
    chosen: Sequence[Case],
    dtype: torch.dtype,
    end: float,
) -> list[Launch]:
    """Compile settings in several processes until a moment; return those that can be tried, in their order."""
    major, minor = torch.cuda.get_device_capability()
    fit = {choices[0]}
    # One case without dilation, and one with.
    two = list({case.dilation > 1: case for case in chosen}.values())
    waiting = {pool.submit(compile_setting, kernel, c, two, dtype, 10 * major + minor): c for c in choices[1:]}
    try:
        for future in as_completed(waiting, timeout=max(0.0, end - time.monotonic())):
            if future.result() is None:
                fit.add(waiting[future])
    except OutOfTime:
        for future in waiting:
            future.cancel()
    return [choice for choice in choices if choice in fit]


def _best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    groups = dict.fromkeys((row["type"], row["kernel"]) for row in rows)
    usable = [row for row in rows if "ms" in row and not row["remark"]]
    found = ([row for row in usable if (row["type"], row["kernel"]) == group] for group in groups)
    return [min(group, key=lambda row: row["ms"]) for group in found if group]


def _save(stem: Path, rows: Sequence[dict[str, Any]], device: torch.device) -> None:
    best = {
        f"best {r['type']} {r['kernel']}": f"Launch({r['tile']}, {r['block']}, {r['warps']}, {r['stages']})"
        for r in _best(rows)
    }
    bars = {
        f"{r['type']} {r['kernel']}": {"best": r["ms"], "shipped": r["ms"] * r["shipped / this"]} for r in _best(rows)
    }
    save(stem, "Tile sizes of the attention kernels", machine(device), rows, best, bars, "ms, all layers")


if __name__ == "__main__":
    sys.exit(main())
