#!/usr/bin/env python
"""Show what a model costs and how far it sees, and evaluate it with other dilations.

    python tools/analyze_model.py --model dinat_mini                         # parameters and multiply-adds by part
    python tools/analyze_model.py --config-file F --size 800 1280 --json costs.json
    python tools/analyze_model.py --model dinat_mini --receptive-field field.png --compare --json field.json
    python tools/analyze_model.py --config-file F --receptive-field field.png MODEL.WEIGHTS model.pth
    python tools/analyze_model.py --config-file F --sweep-dilations default nat 2 8,4,2,1 --output DIR MODEL.WEIGHTS W

NAME is one of the 67 published models (docs/models.md). Costs need no weights and compute nothing. A receptive field is
that of random weights unless --weights or MODEL.WEIGHTS names a file. --sweep-dilations evaluates with train_net.py for
each setting and writes dilations.json, .md and .png to DIR; the same command continues an interrupted run. A setting
is default, nat, a factor, one dilation for each level, or a list for each level. KEY VALUE pairs set config keys.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from dinat_backbone import create_classifier
from dinat_common.errors import report_errors, report_interrupt, run_script
from dinat_common.files import atomic_write, check_file, check_folder, sha256_of, user_path, write_json
from mask2former.analysis import (
    Costs,
    DilationError,
    Dilations,
    Evaluation,
    Fields,
    NeighborRule,
    Network,
    build_network,
    count_costs,
    draw_fields,
    effective_fields,
    main_metrics,
    own_neighbors,
    parse_dilations,
    printed,
    read_evaluations,
    swin_neighbors,
    theoretical_fields,
    write_report,
)
from mask2former.checkpoint import Checkpointer, fetch, is_url
from mask2former.config import setup_cfg
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.data.image_io import read_image
from mask2former.model_zoo import MODELS, PublishedModel

ROOT = Path(__file__).resolve().parents[1]
# Mean and standard deviation of ImageNet's images, by channel (RGB), with which the published models see them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def published_model(options: argparse.Namespace) -> PublishedModel | None:
    """The published model of the command line, unless config keys change it."""
    if options.model:
        return MODELS[options.model]
    config_file = options.config_file.resolve()
    same = (model for model in MODELS.values() if (ROOT / model.config_file).resolve() == config_file)
    return None if options.opts else next(same, None)


def read_config(options: argparse.Namespace) -> CfgNode:
    """Read the config of the command line, or that of a published model.

    Raises:
        ConfigError: The config can't be used.
    """
    config_file = ROOT / MODELS[options.model].config_file if options.model else options.config_file
    cfg = setup_cfg(config_file, options.opts)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, config_file.parent)
    if options.model:  # without the weights that a training starts from
        cfg.MODEL.WEIGHTS = options.weights or ""
    return cfg


def is_classifier(options: argparse.Namespace) -> bool:
    """Whether the command line names a classifier, which needs no config."""
    return bool(options.model) and MODELS[options.model].group == "classification"


def build(options: argparse.Namespace, *, device: str = "meta", dilated: bool = True) -> Network:
    """Build the network of the command line in evaluation mode.

    Args:
        options: Command line.
        device: Device of the network; meta for shapes without values. Otherwise weights are loaded if there are any;
            random ones are always the same.
        dilated: Whether the network keeps its dilations.
    """
    torch.manual_seed(0)
    if is_classifier(options):
        # Settings of networks without dilations do not exist in ViT-rpb.
        settings: dict[str, Any] = {} if dilated else {"dilations": ()}
        with torch.device(device):
            weights = None if device == "meta" else options.weights
            return Network(create_classifier(options.model, weights, **settings)).eval()
    cfg = read_config(options)
    if not dilated:
        cfg.MODEL.DINAT.DILATIONS = []
    network = build_network(cfg, device)
    if device != "meta" and cfg.MODEL.WEIGHTS:
        Checkpointer(network.model).load(cfg.MODEL.WEIGHTS)
    return network


def image_size(options: argparse.Namespace) -> tuple[int, int]:
    """Height and width of the image: as given, as published, or as in the config's evaluation."""
    if options.size:
        return options.size
    if model := published_model(options):
        return model.flops_size
    cfg = read_config(options)
    side = min(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return side, side


def compare(costs: Costs, model: PublishedModel) -> str:
    """One line that compares the costs with the printed ones."""
    if not model.flops:
        return f"{model.name}: no counts are published"
    found = f"{printed(costs.parameters, model.parameters)} and {printed(costs.multiply_adds, model.flops)}"
    remark = f" ({model.counts_doubt})" if model.counts_doubt else ""
    return f"{model.name}: {found}; published are {model.parameters} parameters and {model.flops} FLOPs{remark}"


def show_costs(options: argparse.Namespace) -> dict[str, Any]:
    """Count and print parameters and multiply-adds; returns the contents of the JSON file."""
    model, size = published_model(options), image_size(options)
    costs = count_costs(build(options), size)
    print(costs.table())
    content = costs.as_dict()
    if model:
        if size == model.flops_size:
            print(f"\n{compare(costs, model)}")
        keys = ("name", "parameters", "flops", "flops_size", "counts_doubt")
        content["published"] = {key: getattr(model, key) for key in keys}
    return content


def read_images(options: argparse.Namespace, size: tuple[int, int]) -> Tensor:
    """Normalised images [B, 3, H, W] of the command line; noise if there are none."""
    if not options.images:
        return torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    pixels = [cv2.resize(read_image(path), size[::-1], interpolation=cv2.INTER_AREA) for path in options.images]
    normalised = (np.stack(pixels).astype(np.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalised).permute(0, 3, 1, 2).contiguous()


def show_receptive_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Compute and draw receptive fields; returns the contents of the JSON file."""
    size = image_size(options)
    images = read_images(options, size)
    name = options.model or options.config_file.stem
    variants: list[tuple[str, NeighborRule, bool]] = [(name, own_neighbors, True)]
    if options.compare:
        variants += [
            ("without dilation", own_neighbors, False),
            ("shifted windows (Swin)", swin_neighbors, False),
        ]
    networks = []
    for label, rule, dilated in variants:
        layers = theoretical_fields(build(options, dilated=dilated), size, rule)
        # Swin's rule is compared in theory alone.
        known = rule is own_neighbors
        effective = effective_fields(build(options, device="cpu", dilated=dilated), images) if known else ()
        networks.append(Fields(label, layers, effective))
    for fields in networks:
        print(fields.table() + "\n")
    with atomic_write(options.receptive_field, "wb") as file:
        draw_fields(networks, file)
    return {"size": list(size), "networks": [fields.as_dict() for fields in networks]}


def sweep(options: argparse.Namespace) -> bool:
    """Evaluate with each setting of dilations; returns whether all evaluations have a result.

    Raises:
        DilationError: A setting does not fit the model.
    """
    cfg = read_config(options)
    weights = str(fetch(cfg.MODEL.WEIGHTS)) if is_url(cfg.MODEL.WEIGHTS) else cfg.MODEL.WEIGHTS
    if not weights:
        raise DilationError("MODEL.WEIGHTS is empty: set it to the checkpoint to evaluate")
    trained = cfg.MODEL.DINAT.DILATIONS or [[1] * depth for depth in cfg.MODEL.DINAT.DEPTHS]
    settings = {text: parse_dilations(text, trained) for text in options.sweep_dilations}
    check_folder(options.output)
    cfg.MODEL.WEIGHTS = sha256_of(weights)
    evaluations = [Evaluation(name, values, key=_key(cfg, values)) for name, values in settings.items()]
    kept = {key: entry for key, entry in read_evaluations(options.output).items() if entry.status == "done"}
    evaluations = [replace(kept[e.key], name=e.name) if e.key in kept else e for e in evaluations]
    for index, evaluation in enumerate(evaluations):
        if evaluation.status == "open":
            print(f"[{index + 1}/{len(evaluations)}] dilations {evaluation.name}: {evaluation.dilations}", flush=True)
            evaluations[index] = evaluate(evaluation, options, weights)
            write_report(evaluations, options.output)
    print(write_report(evaluations, options.output))
    return all(evaluation.status == "done" for evaluation in evaluations)


def _key(cfg: CfgNode, dilations: Dilations) -> str:
    cfg = cfg.clone()
    cfg.MODEL.DINAT.DILATIONS = dilations
    cfg.OUTPUT_DIR = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def evaluate(evaluation: Evaluation, options: argparse.Namespace, weights: str) -> Evaluation:
    """Evaluate with one setting in a separate process, which continues an interrupted evaluation."""
    folder = options.output / re.sub(r"[^\w.,-]+", "_", evaluation.name)
    config_file = ROOT / MODELS[options.model].config_file if options.model else options.config_file
    command = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--resume", "--config-file", str(config_file)]
    if options.num_gpus is not None:
        command += ["--num-gpus", str(options.num_gpus)]
    command += [*options.opts, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(folder)]
    command += ["MODEL.DINAT.DILATIONS", str(evaluation.dilations)]
    status = subprocess.run(command, check=False).returncode
    if status:
        return replace(evaluation, status="failed", reason=f"exit status {status} (see {folder}/log.txt)")
    try:
        return replace(evaluation, status="done", metrics=main_metrics(folder))
    except (OSError, ValueError) as error:
        return replace(evaluation, status="failed", reason=str(error))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config-file", type=user_path, metavar="F")
    which.add_argument("--model", metavar="NAME", help="one of the published models")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="size of the image; default: as published"
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the numbers to this file")
    parser.add_argument(
        "--receptive-field", type=user_path, metavar="PNG", help="compute receptive fields and draw them"
    )
    parser.add_argument(
        "--compare", action="store_true", help="draw the model without dilation and Swin's windows beside it"
    )
    parser.add_argument("--images", nargs="+", type=user_path, default=[], metavar="FILE", help="default: noise")
    parser.add_argument("--weights", metavar="FILE", help="weights of --model; a config has MODEL.WEIGHTS")
    parser.add_argument("--sweep-dilations", nargs="+", metavar="SETTING", help="evaluate with these dilations")
    parser.add_argument("--output", type=user_path, default=Path("output/dilations"), metavar="DIR")
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes per evaluation; default: as in train_net.py"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    options = parser.parse_intermixed_args(arguments)
    # Overrides may follow the settings or images, whose number is not known.
    for name in ("sweep_dilations", "images"):
        values = [str(value) for value in getattr(options, name) or ()]
        first = next(
            (i for i, value in enumerate(values) if re.fullmatch(r"[A-Z]+(\.[A-Z0-9_]+)+", value)), len(values)
        )
        options.opts = [*values[first:], *options.opts]
        vars(options)[name] = values[:first]
    if options.model and options.model not in MODELS:
        parser.error(f"--model {options.model}: expected one of {', '.join(MODELS)}")
    if options.model and options.opts:
        parser.error("KEY VALUE pairs need --config-file")
    if options.weights and not options.model:
        parser.error("--weights is for --model; set MODEL.WEIGHTS of the config")
    if options.size:
        options.size = tuple(options.size)
        if min(options.size) < 1:
            parser.error("--size: expected two positive numbers")
    return options


def analyze(options: argparse.Namespace) -> bool:
    """Do what the command line asks for; returns whether everything has a result."""
    if options.sweep_dilations:
        return sweep(options)
    for path in filter(None, (options.json, options.receptive_field)):
        check_file(path)
    content = show_receptive_fields(options) if options.receptive_field else show_costs(options)
    if options.json:
        write_json(options.json, content, indent=2)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    with report_interrupt("the same command continues a sweep; finished results are kept"), report_errors():
        return 0 if analyze(options) else 1


if __name__ == "__main__":
    run_script(main)
