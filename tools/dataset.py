#!/usr/bin/env python
"""Prepare your own labelled images for training: check, draw and split them, and write a config.

    python tools/dataset.py inspect --images photos --annotations instances.json
    python tools/dataset.py preview --images photos --labels masks --classes classes.txt --output preview
    python tools/dataset.py split   --images photos --labels masks --classes classes.txt --output data
    python tools/dataset.py config  --images photos --annotations instances.json --gpu-memory 24 --output run
    python tools/dataset.py config  --model mask-rcnn ...

The options determine the format:

    --annotations F                          COCO's instances JSON
    --annotations F --panoptic DIR           COCO's panoptic JSON and its PNGs
    --labels DIR --classes F                 PNGs with a class id or colour per pixel, and a list of classes
    --labels DIR --instances DIR --classes F the same, and PNGs with an instance number per pixel (0: none)
    none of these                            --images has a folder for each class, to classify whole images

--val-images, --val-annotations, ... name the files of a split for evaluation.
Exit status: 0 if the data can be used, 1 if not, 2 if the command line is wrong.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dinat_common.errors import report_errors, report_interrupt, run_script
from dinat_common.files import check_folder, user_path
from mask2former.data.custom.class_list import SourceError
from mask2former.data.custom.classification import make_class_recipe
from mask2former.data.custom.inspection import Inspection, inspect_sources, render
from mask2former.data.custom.model_size import SIZES, Machine
from mask2former.data.custom.models import MODELS, check_model
from mask2former.data.custom.preview import write_preview
from mask2former.data.custom.recipe import make_recipe
from mask2former.data.custom.source import Source
from mask2former.data.custom.split import split
from mask2former.data.custom.training_files import as_instances, derive, write_config
from mask2former.data.datasets.pairs import Names
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.photographs import checked_range
from mask2former.utils.parallel import default_workers

_DEFAULT_MODEL = "mask2former"
BASES = Path(__file__).resolve().parents[1] / "configs" / "_base_"
_COMMANDS = {
    "inspect": "check all files, and list problems with what to do about them",
    "preview": "draw samples with their labels, and how often each class occurs",
    "split": "divide the data into train and val, in the same format",
    "config": "write a config for training, with a reason for each setting",
}
_FILES = {
    "images": "folder of the images, or of a folder for each class",
    "annotations": "COCO's instances or panoptic JSON",
    "panoptic": "folder of panoptic PNGs",
    "labels": "folder of semantic label PNGs",
    "instances": "folder of PNGs with instance numbers",
    "files": "text file that lists the images to use",
}


_NAMED = {"image": "images", "label": "label PNGs", "instance": "PNGs with instance numbers"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 if it is wrong."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_files(command)
        if name != "inspect":
            command.add_argument("--output", type=user_path, required=True, metavar="DIR", help="output folder")
            command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random choices; default: 0")
        if name == "preview":
            command.add_argument("--count", type=_positive, default=12, metavar="N", help="images shown; default: 12")
        if name in ("split", "config"):
            command.add_argument(
                "--val-share",
                type=_share,
                default=0.2,
                metavar="S",
                help="share for evaluation; default: 0.2",
            )
        if name == "config":
            _add_training(command)
    return parser.parse_args(arguments)


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu-memory", type=_memory, required=True, metavar="GB", help="memory per GPU; 0 to train on the CPU"
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        help=f"model to train, see inspect; default: {_DEFAULT_MODEL}, or for class folders an image classifier",
    )
    parser.add_argument("--num-gpus", type=_positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--size", choices=SIZES, help="size of the backbone; default: by images, weights and memory")
    parser.add_argument("--weights", default="", metavar="F", help="file or URL of initial weights (MODEL.WEIGHTS)")
    parser.add_argument("--name", help="name of the data set; default: name of the output folder")


def _memory(text: str) -> float:
    try:
        memory = float(text)
    except ValueError:
        memory = -1.0
    if not 0 <= memory < 10000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected gigabytes, such as 24")
    return memory


def _value_and_class(text: str) -> tuple[int, int]:
    value, _, class_id = text.partition("=")
    try:
        return int(value), int(class_id)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected VALUE=ID, such as 255=1") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1")
    return share


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    for prefix in ("", "val-"):
        for name, text in _FILES.items():
            files.add_argument(
                f"--{prefix}{name}",
                type=user_path,
                metavar="DIR" if text.startswith("folder") else "F",
                required=not prefix and name == "images",
                help=text + (", for evaluation" if prefix else ""),
            )
    files.add_argument("--classes", type=user_path, metavar="F", help="list of classes: lines of text, YAML or JSON")
    files.add_argument(
        "--ignore-label",
        type=int,
        metavar="N",
        help=f"value of void in label PNGs; default: {IGNORE_LABEL} if no class has this id",
    )
    files.add_argument(
        "--map",
        type=_value_and_class,
        nargs="+",
        action="extend",
        default=[],
        metavar="VALUE=ID",
        help="class id of a value of label PNGs, such as 255=1; other values stand for themselves",
    )
    for role, text in _NAMED.items():
        for part, place in (("prefix", "before"), ("suffix", "after")):
            files.add_argument(
                f"--{role}-{part}",
                default="",
                metavar="TEXT",
                help=f"{part} of the names of {text}, {place} the part that all files of an image share",
            )
    files.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        default=(),
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images with more than 8 bits, such as 0 4095; "
        "default: 0 65535 for 16 bits",
    )
    files.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N", help=f"default: {default_workers()} processes"
    )


def read_sources(options: argparse.Namespace) -> list[Source]:
    """The splits that the command line names.

    Raises:
        SourceError: Files do not exist or do not belong together.
        PhotographError: --value-range is no range.
    """
    values = dict(options.map)
    if twice := [f"{value}={class_id}" for value, class_id in options.map if values[value] != class_id]:
        raise SourceError(f"--map {twice[0]}: this value has another class, too")
    prefix, suffix = options.image_prefix, options.image_suffix
    train = Source(
        **{name: getattr(options, name) for name in _FILES},
        classes=options.classes,
        ignore_label=options.ignore_label,
        values=values,
        names=Names(prefix, suffix, options.label_prefix, options.label_suffix),
        instance_names=Names(prefix, suffix, options.instance_prefix, options.instance_suffix),
        value_range=checked_range(options.value_range, "--value-range"),
    )
    val = {name: path for name in _FILES if (path := getattr(options, f"val_{name}"))}
    # Splits may share folders.
    return [train, replace(train, **{"files": None, **val}, split="val")] if val else [train]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    with report_errors(status=2):
        sources = read_sources(options)
        if options.command == "split" and len(sources) > 1:
            raise SourceError("split divides a single data set; remove the --val- options")
        if options.command == "config" and options.model:
            check_model(options.model, sources[0].format)
    with report_interrupt("run the command again to continue"), report_errors():
        if options.command != "inspect":
            check_folder(options.output)
        inspection = inspect_sources(sources, options.workers)
        print(render(inspection))
        written = _RUN[options.command](inspection, options)
    for line in written:
        print(line)
    return 0 if inspection.usable else 1


def preview(inspection: Inspection, options: argparse.Namespace) -> list[str]:
    """Draw the pictures."""
    return [f"wrote {path}" for path in write_preview(inspection, options.output, options.count, options.seed)]


def divide(inspection: Inspection, options: argparse.Namespace) -> list[str]:
    """Write a split of usable data, and the next command."""
    if not inspection.usable:
        return ["nothing was written: fix the data first"]
    parts = split(inspection.train, options.output, options.val_share, options.seed)
    train, val = (parts[name].content.source for name in ("train", "val"))
    changed = "files" if train.annotations is None else "annotations"
    lines = [f"wrote {getattr(of, changed)}: {len(parts[of.split].scans)} images" for of in (train, val)]
    given = {name: getattr(train, name) for name in (*_FILES, "classes") if getattr(train, name)}
    words = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    words += [f"--val-{changed}", str(getattr(val, changed))]
    words += _label_words(options)
    if train.value_range is not None:
        words += ["--value-range", *(f"{value:g}" for value in train.value_range)]
    return [*lines, "", f"python tools/dataset.py config {shlex.join(words)} --gpu-memory GB --output DIR"]


def _label_words(options: argparse.Namespace) -> list[str]:
    """The given options for values and names of label PNGs."""
    words = [f"--ignore-label={options.ignore_label}"] if options.ignore_label is not None else []
    words += ["--map", *(f"{value}={class_id}" for value, class_id in options.map)] if options.map else []
    parts = {f"--{role}-{part}": getattr(options, f"{role}_{part}") for role in _NAMED for part in ("prefix", "suffix")}
    return words + [f"{name}={text}" for name, text in parts.items() if text]


def config(inspection: Inspection, options: argparse.Namespace) -> list[str]:
    """Write a config and the label files that training needs, with reasons and the next command."""
    if not inspection.usable:
        return ["nothing was written: fix the data first"]
    folder, parts = options.output, inspection.splits
    lines = []
    if "val" not in parts:
        parts = split(inspection.train, folder / "data", options.val_share, options.seed)
        lines.append(
            f"- divided: {len(parts['train'].scans)} images for training, {len(parts['val'].scans)} for evaluation"
        )
    machine = Machine(options.gpu_memory, options.num_gpus, default_workers())
    weights = str(user_path(options.weights).resolve()) if user_path(options.weights).is_file() else options.weights
    model = options.model or _DEFAULT_MODEL
    family = MODELS[model].family_of(weights)
    make = partial(make_recipe, model=model)
    if inspection.train.content.source.format == "class_folders":
        family, make = "dinat", make_class_recipe
    backbones = MODELS[model].backbones(BASES, family)
    recipe = make(replace(inspection, splits=parts), machine, backbones, options.size, weights)
    if inspection.train.content.source.value_range is not None:
        low, high = inspection.train.content.source.value_range
        recipe.set(f"values from {low:g} to {high:g} become 0 to 255", INPUT__VALUE_RANGE=[low, high])
    name = options.name or folder.resolve().name
    datasets = {
        part: derive(inspected, f"{name}_{part}", folder / "data" / part, options.workers)
        for part, inspected in parts.items()
    }
    if MODELS[model].tasks == ("instance",):
        datasets = {part: as_instances(dataset) for part, dataset in datasets.items()}
    write_config(folder / "config.yaml", recipe, datasets, BASES, shlex.join(["tools/dataset.py", *sys.argv[1:]]))
    train = f"python train_net.py --config-file {shlex.quote(str(folder / 'config.yaml'))}"
    gpus = f" --num-gpus {options.num_gpus}" if options.num_gpus > 1 else ""
    return [*lines, *recipe.lines(), f"wrote {folder / 'config.yaml'}", "", train + gpus]


_RUN: Mapping[str, Callable[[Inspection, argparse.Namespace], Sequence[str]]] = {
    "inspect": lambda inspection, options: (),
    "preview": preview,
    "split": divide,
    "config": config,
}


if __name__ == "__main__":
    run_script(main)
