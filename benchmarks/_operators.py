"""Where the time of a call goes, by kind of operator on a CPU or of kernel on a GPU."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from _measure import kernels_of, synchronize
from torch.profiler import ProfilerActivity, profile

# Kinds of operators of a CPU and of kernels of a GPU, by parts of their names; the first that fits counts.
_KINDS = {
    "attention": r"neighborhood|query_gradient_kernel|key_gradient_kernel|bias_gradient_kernel|forward_kernel|expand",
    "deformable attention": r"ms_deform",
    "SDPA": r"scaled_dot|flash|fmha",
    "convolution": r"conv|dgrad|wgrad|fprop",
    "matrix product": r"addmm|::mm|bmm|linear|gemm|cutlass|nvjet|xmma|splitK",
    "normalisation": r"norm",
    "softmax": r"softmax",
    "activation": r"gelu|relu|sigmoid",
    "resizing": r"upsample|interpol|grid_sampl",
    "copy": r"copy|contiguous|clone|cat|memcpy|memset|pad",
    "elementwise": r"add|mul|sub|div|elementwise|fill|triton_poi|triton_red|triton_per|vectorized",
}


def kind_of(name: str) -> str:
    """Kind of an operator or a kernel."""
    return next((kind for kind, part in _KINDS.items() if re.search(part, name, re.IGNORECASE)), "rest")


def breakdown(call: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """Rows with the seconds of each kind of operator in one call after a warm-up call, the longest first.

    On a GPU, these are the seconds of kernels; `idle or waiting` is the rest of the time between first and last kernel.
    """
    call()
    synchronize(device)
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as trace:
        call()
        synchronize(device)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    if gpu:
        kernels = kernels_of(trace)
        for event in kernels:
            _add(found, event.name, event.time_range.elapsed_us() / 1e6, 1)
        if kernels:
            span = max(e.time_range.end for e in kernels) - min(e.time_range.start for e in kernels)
            found["idle or waiting"][0] = span / 1e6 - sum(seconds for seconds, _ in found.values())
    else:
        for average in trace.key_averages():
            _add(found, average.key, average.self_cpu_time_total / 1e6, average.count)
    whole = sum(seconds for seconds, _ in found.values())
    rows = [
        {"kind": kind, "s": seconds, "%": 100 * seconds / whole, "calls": count}
        for kind, (seconds, count) in found.items()
    ]
    return sorted(rows, key=lambda row: -row["s"])


def _add(found: dict[str, list[float]], name: str, seconds: float, count: int) -> None:
    entry = found[kind_of(name)]
    entry[0] += seconds
    entry[1] += count
