"""A script: what two processes compute together, and this one alone.

Each process of the pair trains every model for a step on its half of a batch, and then on images without targets while
the other has some; untrained models are evaluated. Processes are forks of this one, which has imported everything.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

import mask2former.data.datasets  # noqa: F401 - registers the data sets
from mask2former.engine import Trainer
from mask2former.engine.batch_norm import replace_sync_batch_norms
from tests.small_models import MODELS, drawn_data, inputs, step

TRAINED = ("mask-rcnn", "cascade", "upernet", "classifier")
EVALUATED = ("mask-rcnn", "upernet", "classifier")


def normalise(share: int) -> tuple[dict, dict, dict]:
    """Weights of a batch norm before and after a step on the first or, counted from the end, the last of five images.

    One process takes all five.
    """
    processes = comm.get_world_size()
    norm = replaced(nn.Sequential(nn.SyncBatchNorm(4)))[0]
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    images = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mine = images if processes == 1 else images[:share] if share > 0 else images[5 + share :]
    mine = mine.clone().requires_grad_()
    (norm(mine) * mine).square().sum().backward()
    gathered = comm.all_gather(mine.grad)
    return before, {**norm.state_dict(), "gradients": torch.cat(gathered)}, {}


def replaced(model: nn.Module) -> nn.Module:
    """The model with batch norms that several processes can train without a GPU."""
    if comm.get_world_size() > 1:
        replace_sync_batch_norms(model)
    return model


def compute(folder: Path) -> None:
    """Write the steps of this process, and what the evaluations found."""
    rank, processes = comm.get_rank(), comm.get_world_size()
    half = slice(None) if processes == 1 else slice(2 * rank, 2 * rank + 2)
    found = {}
    for name in TRAINED:
        cfg = MODELS[name].cfg(*MODELS[name].not_random)
        found[name] = step(cfg, [inputs(name, (2, 2, 2, 2))[half]])
        if processes > 1 and name != "classifier":
            # The first process alone has something to find.
            found[f"{name} without"] = step(MODELS[name].cfg(), [inputs(name, (2, 1) if rank == 0 else (0, 0), rank)])
    found |= {f"{count} of 5": normalise(count if rank == 0 or processes == 1 else count - 5) for count in (5, 3)}
    torch.save(found, folder / f"{rank}.pth")
    for name in EVALUATED:
        cfg = MODELS[name].cfg("OUTPUT_DIR", folder / name)
        model = Trainer.build_model(cfg)
        model.load_state_dict(found[name][0])
        Trainer.test(cfg, model.eval())


def one_of_two(rank: int, folder: Path) -> None:
    """Body of a process of the pair."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    compute(folder)
    dist.barrier()
    dist.destroy_process_group()


def main(output: Path) -> int:
    """Run both; returns the number of failed processes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["DETECTRON2_DATASETS"] = str(output)
    torch.set_num_threads(1)
    drawn_data(output)
    for folder in ("one", "two"):
        (output / folder).mkdir()
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                one_of_two(rank, output / "two")
            except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    compute(output / "one")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    sys.exit(main(parser.parse_args().output))
