#!/usr/bin/env python
"""Show what a model costs: parameters and multiply-adds for one image, by part and by kind of operation.

    python tools/analyze_model.py --model dinat_mini
    python tools/analyze_model.py --config-file F --size 800 1280 --json costs.json
    python tools/analyze_model.py --config-file F MODEL.DINAT.KERNEL_SIZE 11

NAME is one of the 67 published models (docs/models.md). Nothing is computed and no weights are needed. KEY VALUE pairs
set config keys.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinat_backbone import create_classifier
from dinat_common.errors import report_errors, run_script
from dinat_common.files import check_file, user_path, write_json
from mask2former.analysis import Costs, Network, build_network, count_costs, printed
from mask2former.config import setup_cfg
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.model_zoo import MODELS, PublishedModel

ROOT = Path(__file__).resolve().parents[1]


def published_model(options: argparse.Namespace) -> PublishedModel | None:
    """The published model of the command line, unless config keys change it."""
    if options.model:
        return MODELS[options.model]
    config_file = options.config_file.resolve()
    same = (model for model in MODELS.values() if (ROOT / model.config_file).resolve() == config_file)
    return None if options.opts else next(same, None)


def build(options: argparse.Namespace) -> tuple[Network, tuple[int, int]]:
    """Build the network of the command line on the meta device; returns it and the size of the image to count for."""
    model = published_model(options)
    if model and options.model and model.group == "classification":
        with torch.device("meta"):
            return Network(create_classifier(model.name)).eval(), options.size or model.flops_size
    config_file = ROOT / model.config_file if model and options.model else options.config_file
    cfg = setup_cfg(config_file, options.opts)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, config_file.parent)
    side = min(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return build_network(cfg), options.size or (model.flops_size if model else (side, side))


def as_dict(costs: Costs, model: PublishedModel | None) -> dict[str, Any]:
    """Contents of the JSON file: the costs, and what is published about the model."""
    if model is None:
        return costs.as_dict()
    published = {
        "name": model.name,
        "parameters": model.parameters,
        "flops": model.flops,
        "flops_size": list(model.flops_size),
        "remark": model.counts_doubt,
    }
    return {"published": published, **costs.as_dict()}


def compare(costs: Costs, model: PublishedModel) -> str:
    """One line that compares the costs with the printed ones."""
    if not model.flops:
        return f"{model.name}: no counts are published"
    found = f"{printed(costs.parameters, model.parameters)} and {printed(costs.multiply_adds, model.flops)}"
    remark = f" ({model.counts_doubt})" if model.counts_doubt else ""
    return f"{model.name}: {found}; published are {model.parameters} parameters and {model.flops} FLOPs{remark}"


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
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    options = parser.parse_intermixed_args(arguments)
    if options.model and options.model not in MODELS:
        parser.error(f"--model {options.model}: expected one of {', '.join(MODELS)}")
    if options.model and options.opts:
        parser.error("KEY VALUE pairs need --config-file")
    if options.size:
        options.size = tuple(options.size)
        if min(options.size) < 1:
            parser.error("--size: expected two positive numbers")
    return options


def analyze(options: argparse.Namespace) -> None:
    """Count, print and write what the command line asks for.

    Raises:
        ConfigError: The config can't be used.
    """
    if options.json:
        check_file(options.json)
    model = published_model(options)
    network, size = build(options)
    costs = count_costs(network, size)
    print(costs.table())
    if model and size == model.flops_size:
        print(f"\n{compare(costs, model)}")
    if options.json:
        write_json(options.json, as_dict(costs, model), indent=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    with report_errors():
        analyze(options)


if __name__ == "__main__":
    run_script(main)
