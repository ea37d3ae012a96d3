"""A small training as one process of two machines, of which the second is killed once if asked; see killed.py."""

import argparse
import os
import sys
from pathlib import Path

from mask2former.engine import launch
from tests.engine.killed import killing, train


def main(args):
    # Before the second checkpoint, in the first attempt.
    if args.kill and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        killing("mask2former.engine.TrainLoop.run_step", 5, "before").start()
    train(args.output)


if __name__ == "__main__":
    given = argparse.Namespace(
        output=Path(sys.argv[1]), kill=sys.argv[2:] == ["kill"],
        num_gpus=None, num_machines=1, machine_rank=0, dist_url="auto",
    )  # fmt: skip
    launch(main, given)
