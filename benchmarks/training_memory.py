#!/usr/bin/env python
"""Memory that training a published setting needs per image: counted, not measured, so that any machine can run it.

    python benchmarks/training_memory.py [--settings coco-panoptic ...] [--size 1024 1024] [KEY VALUE ...]
    python benchmarks/training_memory.py --backbones mini tiny small base large    # mask2former/data/custom/recipe.py

Runs the forward pass on tensors without content and adds up the tensors that autograd keeps for the backward pass, with
and without MODEL.DINAT.USE_CHECKPOINT, in float32. Weights, gradients and the two moments of AdamW are added once per
GPU. Tensors of the losses (a few MiB) and temporary tensors are not counted.
"""

import argparse
from collections.abc import Sequence
from itertools import product

import torch
from _settings import ROOT, read_config
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mask2former.model_zoo import SETTINGS

# Weights, gradients, and AdamW's means of gradients and of their squares.
_COPIES = 4


def count(
    setting: str, size: tuple[int, int], checkpoint: bool, opts: Sequence[str], backbone: str | None = None
) -> tuple[int, int, int]:
    """Count the bytes that the backbone keeps, that the whole model keeps, and of the weights."""
    cfg = read_config(setting, ["MODEL.DEVICE", "cpu", "MODEL.DINAT.USE_CHECKPOINT", str(checkpoint), *opts])
    if backbone is not None:
        keys = CfgNode.load_yaml_with_base(str(ROOT / f"configs/_base_/dinat_{backbone}.yaml"))
        cfg.merge_from_other_cfg(CfgNode(keys))
    model = build_model(cfg).train()
    without_content = FakeTensorMode(allow_non_fake_inputs=True)
    weights = {without_content.from_tensor(p).untyped_storage() for p in model.parameters()}
    kept: set[torch.UntypedStorage] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with without_content, saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model.backbone(torch.zeros(1, 3, *size))
        of_backbone = sum(storage.nbytes() for storage in kept - weights)
        model.sem_seg_head(features)
    everything = sum(storage.nbytes() for storage in kept - weights)
    return of_backbone, everything, sum(p.nbytes for p in model.parameters())


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["coco-panoptic"], metavar="NAME")
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME", help="backbones of configs/_base_ instead of the settings'"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    args = parser.parse_intermixed_args()
    rows = []
    backbones: list[str | None] = args.backbones or [None]
    for setting in args.settings:
        for name, checkpoint in product(backbones, (False, True)):
            numbers = count(setting, tuple(args.size), checkpoint, args.opts, name)
            backbone, everything, weights = (number / 2**30 for number in numbers)
            label = f"{setting}, {name}" if name else setting
            rows.append((label, checkpoint, backbone, everything - backbone, everything, _COPIES * weights))
    headers = ("setting", "USE_CHECKPOINT", "backbone", "head", "per image", "once: weights, gradients, AdamW")
    print(f"GiB in float32, images of {args.size[0]} x {args.size[1]}, PyTorch {torch.__version__}")
    print(tabulate(rows, headers=headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
