"""What limits the growth of a training from 8 to 512 GPUs: a simulation.

    python benchmarks/scaling.py [--results benchmarks/results/scaling]
    python benchmarks/scaling.py --images-per-second 9.5        (measured on one GPU with the images of each GPU)

Computed: the FLOPs of a step (counted; a backward pass is twice the forward pass) at a share of a GPU's peak rate,
unless a measured rate is given; the all-reduce of the gradients as a ring within each machine and one between
machines, as far as the backward pass does not hide it; and the wait for the slowest process, by drawing the times of
the processes. Measured on one core and scaled: reading and augmenting images, and the metrics of an evaluation.
Every assumption is an option.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import machine, save, table

from dinat_common.errors import run_script
from dinat_common.files import user_path
from mask2former.analysis.costs import count_costs
from mask2former.analysis.networks import build_network
from mask2former.config import setup_cfg
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
GPUS = (8, 64, 512)
SETTING = "coco-panoptic"
TRAINING_IMAGES, EVALUATION_IMAGES = 118_287, 5_000
EPOCHS = 100
_DRAWS = 400
# Forward pass, and backward pass of twice its FLOPs, of which DistributedDataParallel can hide communication behind.
_PASSES, _BACKWARD_SHARE = 3, 2 / 3


@dataclass(frozen=True)
class Model:
    """Size of a model: parameters, and FLOPs of the forward pass for one training image."""

    parameters: int
    flops: float


def count_model(side: int) -> Model:
    """Count parameters and FLOPs of the published model, without computing anything."""
    cfg = setup_cfg(ROOT / SETTINGS[SETTING].config_file, ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    costs = count_costs(build_network(cfg), (side, side))
    return Model(costs.parameters, 2.0 * costs.multiply_adds)


def all_reduce_seconds(size: float, gpus: int, options: argparse.Namespace) -> float:
    """Seconds in which gradients of `size` bytes are summed: within each machine, between machines, and back."""
    inside = min(gpus, options.gpus_per_machine)
    machines = math.ceil(gpus / options.gpus_per_machine)
    seconds = 2 * (inside - 1) / inside * size / (options.gpu_bandwidth * 1e9)
    # Each machine sends and receives once over all of its network cards.
    seconds += 2 * (machines - 1) / machines * size / (options.network * 1e9 / 8)
    return seconds + 2 * (inside - 1 + machines - 1) * options.latency * 1e-6


def slowest(gpus: int, variation: float) -> float:
    """Mean time of the slowest of many processes, relative to the mean of all.

    Args:
        gpus: Number of processes.
        variation: Coefficient of variation of their times, which are drawn from a log-normal distribution.
    """
    sigma = math.sqrt(math.log1p(variation**2))
    times = np.random.default_rng(0).lognormal(-(sigma**2) / 2, sigma, (_DRAWS, gpus))
    return float(times.max(axis=1).mean())


def simulate(gpus: int, model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    images = options.images_per_gpu
    rate = options.images_per_second or options.share * options.peak * 1e12 / (_PASSES * model.flops)
    compute = images / rate
    waiting = compute * (slowest(gpus, options.variation) - 1)
    reduce = {width: all_reduce_seconds(width * model.parameters, gpus, options) for width in (4, 2)}
    hidden = _BACKWARD_SHARE * compute
    exposed = max(0.0, reduce[4] - hidden)
    # Processes of a machine share its cores.
    per_machine = min(gpus, options.gpus_per_machine) * rate
    loading = per_machine * options.loading
    step = (compute + waiting + exposed) * max(1.0, loading / options.cores)
    ideal = compute
    steps = EPOCHS * TRAINING_IMAGES / (gpus * images)
    predicting = EVALUATION_IMAGES / (gpus * rate * _PASSES)
    machines = math.ceil(gpus / options.gpus_per_machine)
    gathering = EVALUATION_IMAGES * options.record * 1e3 * (1 - 1 / machines) / (options.network * 1e9 / 8)
    recording, metrics = (EVALUATION_IMAGES * each for each in (options.recording / gpus, options.metrics))
    return {
        "GPUs": gpus,
        "images per step": gpus * images,
        "compute (s)": compute,
        "all-reduce float32 (s)": reduce[4],
        "bfloat16 (s)": reduce[2],
        "not hidden (s)": exposed,
        "waiting for the slowest (s)": waiting,
        "cores for loading": math.ceil(loading),
        "MB/s from disk": per_machine * options.file * 1e-3,
        "images/s": gpus * images / step,
        "efficiency (%)": 100 * ideal / step,
        f"{EPOCHS} epochs (h)": steps * step / 3600,
        "evaluation: network (s)": predicting,
        "recording (s)": recording,
        "gathering (s)": gathering,
        "metrics (s)": metrics,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1])
    add = parser.add_argument
    assumed: Mapping[str, tuple[float, str]] = {
        "peak": (989, "TFLOP/s of a GPU (an H100 in bfloat16)"),
        "share": (0.04, "share of the peak that a training reaches"),
        "images-per-second": (0, "measured images per second of a training on one GPU, instead of these two"),
        "gpu-bandwidth": (350, "GB/s of a GPU within its machine"),
        "network": (400, "Gbit/s of a machine"),
        "latency": (20, "microseconds of each step of a ring"),
        "variation": (0.05, "coefficient of variation of the time of a step among processes"),
        "loading": (0.03, "core seconds in which a training image is read and augmented, measured"),
        "cores": (96, "cores of a machine that load images"),
        "file": (170, "kB of a training image with its labels"),
        "record": (60, "kB of the results of an image in an evaluation"),
        "recording": (0.019, "core seconds in which a result is recorded, in its process, measured"),
        "metrics": (
            0.004,
            "core seconds for the metrics of an image, in the first process, measured",
        ),
    }
    for name, (default, text) in assumed.items():
        add(f"--{name}", type=float, default=default, metavar="X", help=f"{text}; default: {default:g}")
    add("--images-per-gpu", type=int, default=2, metavar="N", help="images of a GPU in a step; default: 2")
    add("--gpus-per-machine", type=int, default=8, metavar="N", help="default: 8")
    add("--size", type=int, default=1024, metavar="PIXELS", help="side of training images; default: 1024")
    add("--results", type=user_path, metavar="NAME", help="save NAME.md and NAME.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    model = count_model(options.size)
    columns = [simulate(gpus, model, options) for gpus in GPUS]
    # One column per number of GPUs.
    rows = [
        {"": name, **{f"{row['GPUs']} GPUs": row[name] for row in columns}} for name in columns[0] if name != "GPUs"
    ]
    measured = options.images_per_second > 0
    summary = {
        "parameters (million)": model.parameters / 1e6,
        "forward pass (GFLOPs)": model.flops / 1e9,
        "rate of a GPU": "measured" if measured else "computed from FLOPs",
        **{name: value for name, value in vars(options).items() if name != "results"},
    }
    title = f"A training of {SETTING} at {options.size} pixels on many GPUs (simulated)"
    print(table(rows), table([{"": name, "value": value} for name, value in summary.items()]), sep="\n\n")
    if options.results:
        save(options.results, title, machine(torch.device("cpu")), rows, summary)


if __name__ == "__main__":
    run_script(main)
