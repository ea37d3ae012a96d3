"""A model and batches whose losses are not random, trained with few large batches or many small ones.

As a script: in two processes, each writes the weights after a step.
"""

import argparse
from pathlib import Path
from unittest import mock

import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from dinat_backbone import add_dinat_config
from mask2former import setup_cfg
from mask2former.engine import TrainLoop, launch
from tests.conftest import ROOT
from tests.tiny import TINY

CONFIG = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
SIZE = 64


def fixed_points(shape, allowed, device):
    """Like `draw_points`, but with the same points for every mask, so that the order of images has no effect."""
    generator = torch.Generator().manual_seed(shape[1])
    if allowed is None:
        return torch.rand(1, shape[1], 2, generator=generator).expand(shape[0], -1, -1).to(device)
    return allowed[torch.randint(len(allowed), (1, shape[1]), generator=generator).expand(*shape).to(device)]


def images(targets, seed=0):
    """Inputs with these numbers of targets."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for number, count in enumerate(targets):
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.randint(0, 7, (count,), generator=generator)
        masks = torch.rand(count, 8, 8, generator=generator) > 0.5
        instances.gt_masks = masks.repeat_interleave(SIZE // 8, 1).repeat_interleave(SIZE // 8, 2)
        void = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        # All pixels of the last image are void.
        void[: SIZE if number == len(targets) - 1 else 5] = True
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "void": void, "file_name": f"{number}.jpg"})
    return batch


def config(*opts):
    return setup_cfg(CONFIG, [*TINY, *opts], extend=[add_dinat_config])


def untrained(cfg):
    torch.manual_seed(5)
    return build_model(cfg)


def train(cfg, batches, steps):
    """Model and logged losses after one optimiser step (plain gradient descent) on batches."""
    model = untrained(cfg)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loop = TrainLoop(
        create_ddp_model(model, broadcast_buffers=False, device_ids=None), batches, optimizer, accumulate_steps=steps
    )
    with (
        EventStorage() as storage,
        mock.patch("mask2former.modeling.criterion.draw_points", fixed_points),
        mock.patch("mask2former.modeling.matcher.draw_points", fixed_points),
    ):
        loop.iter = 0
        loop.run_step()
    return model, {name: value for name, (value, _) in storage.latest().items() if "loss" in name}


def main(args):
    rank = comm.get_rank()
    mine = images((3, 0, 2, 1) if rank == 0 else (1, 4, 1, 2), seed=rank)
    cfg = config("MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.DINAT.USE_CHECKPOINT", "True")
    if rank == 0:
        torch.save({"model": untrained(cfg).state_dict()}, args.output / "0_0.pth")
    for steps, batches in ((1, [mine]), (4, [[image] for image in mine])):
        model, losses = train(cfg, batches, steps)
        torch.save({"model": model.state_dict(), "losses": losses}, args.output / f"{steps}_{rank}.pth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.set_defaults(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    launch(main, parser.parse_args())
