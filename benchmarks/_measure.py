"""Shared code of the benchmarks: time, peak memory, limits of the machine, and saving tables and charts."""

import ctypes
import gc
import json
import math
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

SECONDS = 20.0
# Shorter calls are repeated more often, because disturbances last longer than one call.
_FEWEST_SECONDS = 0.5
# Calls on a GPU between two moments of waiting for it, and their time.
_LARGEST_BATCH, _SECONDS_OF_BATCH = 100, 0.02
_clock = time.perf_counter


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock() -> float:
    """Seconds of the clock that is in use: the time of day, or processor seconds after `use_cpu_time`."""
    return _clock()


def use_cpu_time() -> None:
    """Measure processor seconds of this process from now on, for one thread on a busy machine."""
    global _clock
    _clock = time.process_time


def seconds(call: Callable[[], Any], repeats: int, device: torch.device, budget: float = SECONDS) -> float:
    """Median time of a call after one warm-up call; on a GPU, of several calls one after the other.

    There are fewer repeats if they would take longer than `budget` seconds, and more if they take less than half a
    second. If one call takes longer than `budget`, the warm-up call counts.
    """
    return statistics.median(_times(call, repeats, device, budget))


def _times(call: Callable[[], Any], repeats: int, device: torch.device, budget: float = SECONDS) -> list[float]:
    once = _time(call, 1, device)
    batch = 1
    if device.type == "cuda":
        # The first call compiled. A GPU is waited for after several calls, so that it need not wait for the next one.
        once = _time(call, 1, device)
        batch = max(1, min(_LARGEST_BATCH, int(_SECONDS_OF_BATCH / once)))
    expected = once * batch
    count = min(max(repeats, int(_FEWEST_SECONDS / expected)), int(budget / expected))
    return [_time(call, batch, device) for _ in range(count)] or [once]


def _time(call: Callable[[], Any], batch: int, device: torch.device) -> float:
    start = _clock()
    for _ in range(batch):
        call()
    synchronize(device)
    return (_clock() - start) / batch


def kernel_seconds(call: Callable[[], Any], device: torch.device, name: str = "", calls: int = 5) -> float:
    """Seconds that the kernels of a call run on a GPU, without the gaps between them; NaN if there are none.

    Args:
        call: Function to call.
        device: Device that it computes on.
        name: Part of the names of the kernels that count.
        calls: Number of calls.
    """
    if device.type != "cuda":
        return math.nan
    call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(calls):
            call()
        synchronize(device)
    # Without access to the device's counters there are no kernels.
    kernels = [event for event in kernels_of(trace) if name in event.name]
    return sum(event.time_range.elapsed_us() for event in kernels) / calls / 1e6 or math.nan


def kernels_of(trace: profile) -> list[Any]:
    """Return the events of a trace that ran on a GPU."""
    return [event for event in trace.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]


def peak_memory(call: Callable[[], Any], device: torch.device) -> float:
    """MB by which a call raises the memory of the GPU, or of the process on Linux; NaN elsewhere."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if sys.platform != "linux":
        return math.nan
    # Memory that was freed but is still held would hide new allocations.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1e6


def resident_memory() -> float:
    """MB of memory that this process has on Linux; NaN elsewhere."""
    return _status("VmRSS") / 1e6 if sys.platform == "linux" else math.nan


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def available_memory(device: torch.device) -> int:
    """Bytes of free memory; 4 GiB on systems that do not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 4 << 30
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def gemm_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """FLOP/s of a product of two square matrices: the best of several, because it is used as a limit."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(_times(lambda: a @ b, 5, device))


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes/s read plus bytes/s written by a copy: the best of several."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_times(lambda: target.copy_(source), 5, device))


def machine(device: torch.device) -> dict[str, Any]:
    """Device, versions and settings that the numbers depend on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "clock": "wall" if _clock is time.perf_counter else "processor seconds",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "natten": _version("natten"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def describe(facts: Mapping[str, Any]) -> str:
    """Facts in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def save(
    stem: Path,
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    bars: Mapping[str, Mapping[str, float]] | None = None,
    axis: str = "",
    scale: str = "log",
) -> None:
    """Write STEM.json, STEM.md (the table) and STEM.png (one bar per name for each group of `bars`)."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "machine": facts, "command": sys.argv, "summary": summary, "rows": rows}
    text = json.dumps(content, indent=1)
    stem.with_suffix(".json").write_text(text.replace("NaN", "null") + "\n", encoding="utf-8")
    parts = [f"# {title}", describe(facts), f"`python {' '.join(sys.argv)}`", table(rows)]
    if summary:
        short = [(name, f"{value:.3g}" if isinstance(value, float) else value) for name, value in summary.items()]
        parts.append(tabulate(short, headers=("sum", ""), tablefmt="github", disable_numparse=True))
    stem.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if bars:
        _draw(stem.with_suffix(".png"), title, facts, bars, axis, scale)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table; cells without a number stay empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    return tabulate(cells, headers=names, tablefmt="github", floatfmt=".3g")


def _draw(
    path: Path,
    title: str,
    facts: Mapping[str, Any],
    bars: Mapping[str, Mapping[str, float]],
    axis: str,
    scale: str,
) -> None:
    # Imported here because it is slow and nothing else needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for group in bars.values() for name in group))
    height = 1.5 + 0.16 * len(bars) * (len(names) + 1)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    for i, name in enumerate(names):
        places = [j + 0.8 * i / len(names) for j in range(len(bars))]
        axes.barh(places, [group.get(name, math.nan) for group in bars.values()], 0.8 / len(names), label=name)
    axes.set_yticks([j + 0.4 * (1 - 1 / len(names)) for j in range(len(bars))], list(bars))
    axes.invert_yaxis()
    axes.set_xscale(scale)
    axes.set_xlabel(axis)
    axes.set_title(f"{title}\n{textwrap.fill(describe(facts), 110)}", fontsize=8)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
