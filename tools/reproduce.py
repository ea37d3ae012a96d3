#!/usr/bin/env python
"""Evaluate the 67 published models and compare the results with the papers.

    python tools/reproduce.py --datasets ROOT --weights DIR --dry-run
    python tools/reproduce.py --datasets ROOT --weights DIR --num-gpus 8
    torchrun --nproc-per-node 8 tools/reproduce.py --datasets ROOT --weights DIR
    python tools/reproduce.py --datasets ROOT --weights DIR --settings detection nat_mini coco-panoptic '*dinat_s*'

ROOT holds the data sets (datasets/README.md), DIR the checkpoints under their published names (docs/models.md), as .pth
or .safetensors. --settings takes models, patterns of their names, and groups:
GROUPS.
A model whose published number may belong to either of two sizes is evaluated at both, as MODEL@512 and MODEL@640.

train_net.py does each evaluation in its own folder under --output, at several scales where such numbers are published;
after each, reproduction.md, .json and .png are written there. The same command continues an interrupted run and keeps
results of the same config, checkpoint and number of images. KEY VALUE pairs set config keys in all evaluations.

Under torchrun, on one machine or several, all processes do each evaluation together, and the first one writes the
report. Each machine needs data sets and checkpoints; folders may differ.
"""

import argparse
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import IO, cast

import detectron2
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate

import mask2former.maskformer_model
import mask2former.modeling  # noqa: F401 - both register meta-architectures
from dinat_common.errors import UserError, report_errors, report_interrupt, run_script
from dinat_common.files import check_folder, sha256_of, user_path
from mask2former.checkpoint import build_empty_state, compare, from_openmmlab, read_checkpoint
from mask2former.config import setup_cfg
from mask2former.data.published import check_datasets
from mask2former.engine import launch, under_torchrun
from mask2former.evaluation.reproduction import (
    EVALUATIONS,
    GROUPS,
    Evaluation,
    Plan,
    Record,
    lacking_weights,
    make_plan,
    near,
    read_records,
    read_results,
    select,
)
from mask2former.evaluation.reproduction_report import MARKDOWN_NAME, grouped, write_report
from mask2former.test_time_augmentation import check_augmentation
from mask2former.utils.parallel import uneven_work

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
        record: Record of the evaluation, as far as it is known before.
    """

    plan: Plan
    opts: tuple[str, ...]
    record: Record


def prepare(names: Sequence[str], options: argparse.Namespace) -> list[Run]:
    """Find out for each evaluation what there is and what is missing. Each data set and checkpoint is checked once.

    Raises:
        ConfigError: The overrides do not fit a config.
    """
    evaluations = [EVALUATIONS[name] for name in names]
    opts = {evaluation.name: _overrides(evaluation, options) for evaluation in evaluations}
    cfgs = {
        evaluation.name: setup_cfg(ROOT / evaluation.model.config_file, opts[evaluation.name])
        for evaluation in evaluations
    }
    data = check_datasets(dataset for cfg in cfgs.values() for dataset in cfg.DATASETS.TEST)
    faults: dict[Path, str] = {}
    plans = []
    for evaluation in evaluations:
        cfg = cfgs[evaluation.name]
        plan = make_plan(evaluation, [data[name] for name in cfg.DATASETS.TEST], options.weights)
        if plan.checkpoint and plan.checkpoint not in faults:
            faults[plan.checkpoint] = check_weights(plan.checkpoint, cfg, allow_pickle=options.allow_pickle)
        if plan.checkpoint and faults[plan.checkpoint]:
            plan = replace(plan, obstacles=(*plan.obstacles, f"weights: {faults[plan.checkpoint]}"))
        try:
            check_augmentation(cfg)
        except UserError as error:
            plan = replace(plan, obstacles=(*plan.obstacles, f"config: {error}"))
        plans.append(plan)
    plans = [
        replace(plan, obstacles=tuple(obstacles))
        for plan, obstacles in zip(plans, _of_all_processes([plan.obstacles for plan in plans]), strict=True)
    ]
    return [Run(plan, opts[name], _open_record(plan, cfgs[name])) for plan in plans if (name := plan.evaluation.name)]


def _of_all_processes(obstacles: Sequence[Sequence[str]]) -> list[list[str]]:
    """Obstacles of each evaluation, with those of other processes that this one does not have."""
    found = [list(own) for own in obstacles]
    for rank, others in enumerate(comm.all_gather(found)):
        for own, other in zip(found, others, strict=True):
            if other and not own:
                own += [f"{text} (found by process {rank})" for text in other]
    return found


def _overrides(evaluation: Evaluation, options: argparse.Namespace) -> tuple[str, ...]:
    augmented = ("TEST.AUG.ENABLED", "True") if evaluation.augmented else ()
    return (*augmented, *evaluation.opts, *options.opts)


def _open_record(plan: Plan, cfg: CfgNode) -> Record:
    model, file = plan.evaluation.model, plan.checkpoint
    reasons = list(plan.obstacles)
    if file is None:
        reasons.append(f"{model.checkpoint} is published at {model.checkpoint_url}")
    return Record(
        plan.evaluation.name,
        "open" if plan.ready else "missing",
        reason="; ".join(reasons) or "not evaluated yet",
        obstacles=plan.obstacles,
        multi_scale=cfg.TEST.AUG.ENABLED,
        config_sha256=config_hash(cfg) if plan.ready else "",
        checkpoint=file.name if file else "",
        checkpoint_state={"bytes": file.stat().st_size, "modified": file.stat().st_mtime_ns} if file else {},
        images=plan.images,
        remarks=(*plan.evaluation.remarks(), *plan.remarks),
    )


def check_weights(path: Path, cfg: CfgNode, *, allow_pickle: bool = False) -> str:
    """Reason why names and shapes of a checkpoint do not fit the model of a config; empty if they fit."""
    try:
        state = read_checkpoint(path, allow_pickle=allow_pickle, shapes_only=True)["model"]
        _, report = compare(from_openmmlab(state), build_empty_state(cfg))
    except UserError as error:
        return str(error)
    return "" if report.exact else f"{path} is a checkpoint of another model: {report.summary()}"


def config_hash(cfg: CfgNode) -> str:
    """SHA-256 of the config without paths, which differ between machines."""
    cfg = cfg.clone()
    cfg.merge_from_list([part for key in SET_HERE for part in (key, "")])
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def is_kept(run: Run, earlier: Mapping[str, Record]) -> bool:
    """Whether there is an earlier result of the same evaluation, or of one that can't be repeated here."""
    record, path = earlier.get(run.record.setting), run.plan.checkpoint
    if record is None or record.status != "done":
        return False
    if not run.plan.ready or path is None:
        return True
    if (record.config_sha256, record.images) != (run.record.config_sha256, run.record.images):
        return False
    # The content is read only if the file is not obviously the same.
    return record.checkpoint_state == run.record.checkpoint_state or record.checkpoint_sha256 == sha256_of(path)


def show_plan(runs: Sequence[Run], kept: Mapping[str, Record]) -> None:
    """Print the planned evaluations, then what is missing: each reason once."""
    rows = []
    for run in runs:
        plan = run.plan
        name = plan.checkpoint.name if plan.checkpoint else plan.evaluation.model.checkpoint
        size = f"{plan.checkpoint.stat().st_size / 1e6:.0f} MB" if plan.checkpoint else "missing"
        lacking = dict.fromkeys(obstacle.split(":")[0] for obstacle in plan.obstacles)
        todo = "evaluate" if plan.ready else f"missing: {', '.join(lacking)}"
        if plan.evaluation.name in kept:
            todo = "finished: kept"
        scales = "multi" if run.record.multi_scale else "single"
        if run.record.multi_scale and plan.evaluation.model.published_multi_scale:
            scales = "both"
        rows.append((plan.evaluation.name, plan.images, scales, name, size, todo))
    headers = ("model", "images", "scales", "checkpoint", "size", "plan")
    print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True), end="\n\n")
    for kind in ("obstacles", "remarks"):
        for names, message in grouped(
            (run.record.setting, (text,)) for run in runs for text in getattr(run.record, kind)
        ):
            print(f"{names}: {message}")
    if addresses := lacking_weights(run.record for run in runs):
        print("\n  ".join(["Checkpoints that were not found are published here:", *addresses]))
    ready = sum(run.plan.ready and run.record.setting not in kept for run in runs)
    print(
        f"{len(runs)} evaluations: {len(kept)} finished, {ready} to do, {len(runs) - len(kept) - ready} lack something"
    )


def evaluate(run: Run, options: argparse.Namespace) -> Record:
    """Evaluate one model in a separate process, which continues an interrupted evaluation, and read the results."""
    evaluation, path = run.plan.evaluation, cast(Path, run.plan.checkpoint)
    output = options.output / evaluation.name
    command = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--resume"]
    command += ["--config-file", str(ROOT / evaluation.model.config_file)]
    if options.num_gpus is not None:
        command += ["--num-gpus", str(options.num_gpus)]
    if options.allow_pickle:
        command.append("--allow-pickle")
    command += [*run.opts, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(output)]
    record, unreadable = run.record, ""
    try:
        record = replace(record, checkpoint_sha256=sha256_of(path))
    except OSError as error:
        unreadable = str(error)
    if reasons := list(filter(None, comm.all_gather(unreadable))):
        return replace(record, status="failed", reason=reasons[0])
    with uneven_work():
        status, last_line = run_process(command)
    if status:
        return replace(record, status="failed", reason=f"exit status {status}: {last_line} (see {output}/log.txt)")
    try:
        results = read_results(output, evaluation.name, multi_scale=record.multi_scale)
    except (OSError, ValueError) as error:
        return replace(record, status="failed", reason=str(error))
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = replace(record, ours=results.ours, speed=results.speed, speed_multi_scale=results.speed_multi_scale)
    return replace(record, status="done", reason="", versions=versions(), finished=finished)


def run_process(command: Sequence[str]) -> tuple[int, str]:
    """Run a command with its output shown; returns the exit status and the last line on stderr."""
    tail = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=_environment()) as process:
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


def _environment() -> dict[str, str]:
    """Environment of an evaluation. Under torchrun, its processes meet at another port than those of this command."""
    environment = dict(os.environ)
    if comm.get_world_size() > 1:
        with socket.socket() as free:
            free.bind(("", 0))
            port = comm.all_gather(free.getsockname()[1])[0]
        environment |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return environment


@cache
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
        ConfigError: The overrides do not fit a config.
    """
    first = comm.is_main_process()
    if not options.dry_run:
        check_folder(options.output)
    if first:
        print("Checking data and weights", flush=True)
    # The results of the first process count.
    earlier = comm.all_gather(read_records(options.output) if first else {})[0]
    runs = prepare(options.settings, options)
    kept = {run.record.setting: earlier[run.record.setting] for run in runs if is_kept(run, earlier)}
    kept = comm.all_gather(kept)[0]
    if first:
        show_plan(runs, kept)
    if options.dry_run:
        return True
    # The report lists all of them.
    records = {name: Record(name, "missing", reason="not among --settings") for name in EVALUATIONS}
    records |= earlier | {run.record.setting: run.record for run in runs} | kept
    todo = [run for run in runs if run.plan.ready and run.record.setting not in kept]
    if first:
        write_report(records.values(), options.output)
    for number, run in enumerate(todo, start=1):
        if first:
            print(f"[{number}/{len(todo)}] {run.record.setting}: {run.record.images} images", flush=True)
        records[run.record.setting] = evaluate(run, options)
        if first:
            write_report(records.values(), options.output)
    if first:
        print((options.output / MARKDOWN_NAME).read_text(encoding="utf-8"))
    asked = comm.all_gather([records[name].status for name in options.settings])[0]
    return "failed" not in asked and "done" in asked


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1].replace("GROUPS", ", ".join(GROUPS)),
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
        default=["*"],
        metavar="NAME",
        help="models, groups and patterns; default: all",
    )
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes per evaluation; default: as in train_net.py"
    )
    # For `launch`.
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
    parser.add_argument("--output", type=user_path, default=Path("output/reproduction"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="only show the planned evaluations and what is missing")
    parser.add_argument("--allow-pickle", action="store_true", help="open .pkl files, which can execute arbitrary code")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set in all evaluations")
    options = parser.parse_intermixed_args(arguments)
    if under_torchrun():
        # torchrun has set their number, and this command itself is one process of it.
        options = argparse.Namespace(**{**vars(options), "num_gpus": None})
    # Overrides may follow the names, whose number is not known.
    words = list(takewhile(lambda word: not _is_key(word), options.settings))
    options.opts = [*options.settings[len(words) :], *options.opts]
    for word in words:
        if not select(word):
            parser.error(f"--settings {word}: no such model or group; {near(word)}")
    options.settings = list(dict.fromkeys(name for word in words for name in select(word)))
    for name in ("datasets", "weights"):
        if not getattr(options, name).is_dir():
            parser.error(f"--{name} {getattr(options, name)}: no such folder")
    for key in SET_HERE:
        if key in options.opts[::2]:
            parser.error(f"{key} is set for each model by this command")
    return options


def _is_key(word: str) -> bool:
    """Whether a word is a config key, not a pattern of names."""
    return word.isupper() and word.replace(".", "").replace("_", "").isalnum()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    os.environ["DETECTRON2_DATASETS"] = str(options.datasets.resolve())
    options.weights, options.output = options.weights.resolve(), options.output.absolute()
    interrupted = report_interrupt(f"the same command continues; finished results are in {options.output}")
    with interrupted, report_errors():
        done = launch(reproduce, options) if under_torchrun() else reproduce(options)
        return 0 if done else 1


if __name__ == "__main__":
    run_script(main)
