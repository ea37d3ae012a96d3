"""A script that starts processes with our launcher; each writes what it observes."""

import argparse
import json
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from dinat_common.errors import UserError
from mask2former.checkpoint import CheckpointMismatchError
from mask2former.engine import launch


def describe(args):
    total = torch.tensor([comm.get_rank() + 1.0])
    dist.all_reduce(total)
    facts = {
        "rank": comm.get_rank(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "world": comm.get_world_size(),
        "sum": total.item(),
        "gathered": comm.all_gather(comm.get_rank() * 10),
        "threads": torch.get_num_threads(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    (args.output / f"{comm.get_rank()}.json").write_text(json.dumps(facts))


def describe_and_fail_on_one(args):
    describe(args)
    if comm.get_rank() == 1:
        raise CheckpointMismatchError("message of rank 1")
    comm.synchronize()


def describe_and_kill_one(args):
    describe(args)
    comm.synchronize()
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto")
    parser.add_argument("--do", default="describe")
    given = parser.parse_args()
    (given.output / "threads.txt").write_text(str(torch.get_num_threads()))
    try:
        launch(globals()[given.do], given)
    except UserError as error:
        (given.output / f"error{given.machine_rank}.txt").write_text(str(error))
    (given.output / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
