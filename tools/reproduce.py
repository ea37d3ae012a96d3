#!/usr/bin/env python
"""Evaluate the published settings and compare the results with the papers.

    python tools/reproduce.py --datasets ROOT --weights DIR --dry-run
    python tools/reproduce.py --datasets ROOT --weights DIR --num-gpus 8
    python tools/reproduce.py --datasets ROOT --weights DIR --settings coco-panoptic ade20k-semantic

ROOT holds the data sets (datasets/README.md), DIR the checkpoints under their published names, as .pth or .safetensors.
train_net.py evaluates each setting in its own folder under --output; after each, reproduction.md, .json and .png are
written there. The same command continues an interrupted run and keeps results of the same config, checkpoint and number
of images. KEY VALUE pairs set config keys in all settings.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import IO, cast

import detectron2
from detectron2.config import CfgNode
from tabulate import tabulate

import mask2former.maskformer_model  # noqa: F401 - registers the meta-architecture
from dinat_common.errors import report_errors, report_interrupt, run_script
from dinat_common.files import check_folder, sha256_of, user_path
from mask2former.checkpoint import CheckpointError, build_empty_state, compare, read_checkpoint
from mask2former.config import setup_cfg
from mask2former.evaluation.reproduction import Plan, Record, plan_settings, read_records, read_results, write_report
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
SET_HERE = ("MODEL.WEIGHTS", "OUTPUT_DIR")
LIBRARIES = ("dinat-mask2former", "torch", "torchvision", "numpy", "hotcoco", "pycocotools", "cityscapesscripts")
TAIL = 2000  # characters of the end of an evaluation's errors that are kept


@dataclass(frozen=True)
class Run:
    """A planned evaluation.

    Attributes:
        plan: Data and weights that are available.
        opts: Overrides of the config.
        record: Record of the setting, as far as it is known before the evaluation.
    """

    plan: Plan
    opts: tuple[str, ...]
    record: Record


def prepare(plan: Plan, options: argparse.Namespace) -> Run:
    """Decide how a setting is evaluated.

    Raises:
        ConfigError: The overrides do not fit the config of the setting.
    """
    setting = plan.setting
    opts = [*(("TEST.AUG.ENABLED", "True") if setting.multi_scale else ()), *options.opts]
    cfg = setup_cfg(ROOT / setting.config_file, opts)
    if plan.checkpoint and (fault := check_weights(plan.checkpoint, cfg)):
        plan = replace(plan, obstacles=(*plan.obstacles, f"weights: {fault}"))
    record = Record(
        setting.name,
        "open" if plan.ready else "missing",
        reason="; ".join(plan.obstacles) or "not evaluated yet",
        multi_scale=cfg.TEST.AUG.ENABLED,
        config_sha256=config_hash(cfg),
        images=plan.images,
        remarks=plan.remarks,
    )
    if plan.ready and plan.checkpoint:
        record = replace(record, checkpoint=plan.checkpoint.name, checkpoint_sha256=sha256_of(plan.checkpoint))
    return Run(plan, tuple(opts), record)


def check_weights(path: Path, cfg: CfgNode) -> str:
    """Reason why a checkpoint does not fit the model of a config; empty if it fits."""
    try:
        _, report = compare(read_checkpoint(path)["model"], build_empty_state(cfg))
    except CheckpointError as error:
        return str(error)
    return "" if report.exact else f"{path} is a checkpoint of another setting: {report.summary()}"


def config_hash(cfg: CfgNode) -> str:
    """SHA-256 of the config without paths, which differ between machines."""
    cfg = cfg.clone()
    cfg.merge_from_list([part for key in SET_HERE for part in (key, "")])
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def is_kept(run: Run, earlier: Mapping[str, Record]) -> bool:
    """Whether there is an earlier result of the same evaluation, or of one that can't be repeated here."""
    record = earlier.get(run.record.setting)
    return record is not None and record.status == "done" and (not run.plan.ready or record.same_run(run.record))


def show_plan(runs: Sequence[Run], kept: Mapping[str, Record]) -> None:
    """Print the planned evaluations."""
    rows = []
    for run in runs:
        checkpoint = run.plan.checkpoint
        size = f"{checkpoint.stat().st_size / 1e6:.0f} MB" if checkpoint else "missing"
        todo = "finished: kept" if run.plan.setting.name in kept else "evaluate" if run.plan.ready else "missing"
        scales = "multi" if run.record.multi_scale else "single"
        rows.append((run.plan.setting.name, run.plan.images, scales, size, todo))
    print(tabulate(rows, headers=("setting", "images", "scales", "checkpoint", "plan"), tablefmt="simple"))
    for run in runs:
        for message in (*run.plan.obstacles, *run.plan.remarks):
            print(f"{run.plan.setting.name}: {message}")


def evaluate(run: Run, options: argparse.Namespace) -> Record:
    """Evaluate one setting in a separate process, which continues an interrupted evaluation, and read the results."""
    output = options.output / run.plan.setting.name
    command = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--resume"]
    command += ["--config-file", str(ROOT / run.plan.setting.config_file)]
    if options.num_gpus is not None:
        command += ["--num-gpus", str(options.num_gpus)]
    command += [*run.opts, "MODEL.WEIGHTS", str(run.plan.checkpoint), "OUTPUT_DIR", str(output)]
    status, last_line = run_process(command)
    if status:
        return replace(run.record, status="failed", reason=f"exit status {status}: {last_line} (see {output}/log.txt)")
    try:
        ours, speed = read_results(output, run.plan.setting.name, multi_scale=run.record.multi_scale)
    except (OSError, ValueError) as error:
        return replace(run.record, status="failed", reason=str(error))
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return replace(run.record, status="done", reason="", ours=ours, speed=speed, versions=versions(), finished=finished)


def run_process(command: Sequence[str]) -> tuple[int, str]:
    """Run a command with its output shown; returns the exit status and the last line on stderr."""
    tail = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        errors = cast(IO[bytes], process.stderr)
        try:
            while block := os.read(errors.fileno(), TAIL):
                sys.stderr.write(block.decode(errors="replace"))
                sys.stderr.flush()
                tail = (tail + block)[-TAIL:]
        except BaseException:
            process.terminate()
            raise
    lines = tail.decode(errors="replace").strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def versions() -> dict[str, str]:
    """Versions of the libraries that the numbers depend on, and the commit of this checkout, if known."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    found = {"python": sys.version.split()[0], "detectron2": detectron2.__version__}
    found |= {name: installed[name] for name in LIBRARIES if name in installed}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return found
    return found | ({"commit": described.stdout.strip()} if described.returncode == 0 else {})


def reproduce(options: argparse.Namespace) -> bool:
    """Run the command line; returns whether there is a result and no evaluation failed.

    Raises:
        ConfigError: The overrides do not fit a setting.
    """
    if not options.dry_run:
        check_folder(options.output)
    print("Checking data and weights")
    earlier = read_records(options.output)
    plans = plan_settings([SETTINGS[name] for name in options.settings], options.weights)
    runs = [prepare(plan, options) for plan in plans]
    kept = {run.record.setting: earlier[run.record.setting] for run in runs if is_kept(run, earlier)}
    show_plan(runs, kept)
    if options.dry_run:
        return True
    # The report lists all eight settings.
    records = {name: Record(name, "missing", reason="not among --settings") for name in SETTINGS}
    records |= earlier | {run.record.setting: run.record for run in runs} | kept
    write_report(records.values(), options.output)
    todo = [run for run in runs if run.plan.ready and run.record.setting not in kept]
    for number, run in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {run.record.setting}: {run.record.images} images", flush=True)
        records[run.record.setting] = evaluate(run, options)
        write_report(records.values(), options.output)
    print((options.output / "reproduction.md").read_text(encoding="utf-8"))
    asked = [records[name].status for name in options.settings]
    return "failed" not in asked and "done" in asked


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--datasets",
        required=True,
        type=user_path,
        metavar="ROOT",
        help="root of the data sets, as in DETECTRON2_DATASETS",
    )
    parser.add_argument("--weights", required=True, type=user_path, metavar="DIR", help="folder of the checkpoints")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        metavar="NAME",
        help=f"default: all, which are {', '.join(SETTINGS)}",
    )
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes per evaluation; default: as in train_net.py"
    )
    parser.add_argument("--output", type=user_path, default=Path("output/reproduction"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="only show the planned evaluations and sizes")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set in all settings")
    options = parser.parse_intermixed_args(arguments)
    # Overrides may follow the names, whose number is not known.
    names = list(takewhile(SETTINGS.__contains__, options.settings))
    options.settings, rest = names, options.settings[len(names) :]
    if rest and not rest[0].isupper():
        parser.error(f"--settings {rest[0]}: expected names among {', '.join(SETTINGS)}")
    options.opts = [*rest, *options.opts]
    for name in ("datasets", "weights"):
        if not getattr(options, name).is_dir():
            parser.error(f"--{name} {getattr(options, name)}: no such folder")
    for key in SET_HERE:
        if key in options.opts[::2]:
            parser.error(f"{key} is set for each setting by this command")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    os.environ["DETECTRON2_DATASETS"] = str(options.datasets.resolve())
    options.weights, options.output = options.weights.resolve(), options.output.absolute()
    interrupted = report_interrupt(f"the same command continues; finished results are in {options.output}")
    with interrupted, report_errors():
        return 0 if reproduce(options) else 1


if __name__ == "__main__":
    run_script(main)
