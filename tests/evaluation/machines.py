"""A script that acts as one of two machines: evaluates its share of the predictions, is interrupted, and resumes."""

import argparse
import json
from pathlib import Path

import numpy as np
from detectron2.utils import comm

import mask2former.data.datasets  # noqa: F401 - registers the data sets
from mask2former.engine import launch
from mask2former.evaluation import build_evaluator
from mask2former.evaluation.records import gather_in_rounds
from tests.evaluation.predictions import predict
from tests.evaluation.test_build import config


def evaluate(name, folder):
    """Two images before the interruption, those that are left after it, each machine every second one."""
    rank = comm.get_rank()
    cfg = config("PANOPTIC", "INSTANCE", "SEMANTIC")
    images = list(zip(*predict(name, np.random.default_rng(8)), strict=True))
    evaluator = build_evaluator(cfg, name, folder)
    evaluator.start({"weights": "a"}, resume=False)
    for image, output in images[rank : rank + 1]:
        evaluator.process([image], [output])

    evaluator = build_evaluator(cfg, name, folder)
    evaluator.start({"weights": "a"}, resume=True)
    left = [pair for pair in images if not evaluator.is_finished(pair[0])]
    for image, output in left[rank::2]:
        evaluator.process([image], [output])
    return {"results": evaluator.evaluate(), "left": len(left)}


def main(args):
    rank = comm.get_rank()
    facts = {"rounds": list(gather_in_rounds([f"{rank}{letter}" for letter in "abc"], limit=20))}
    for name in args.names:
        facts[name] = {
            layout: evaluate(name, args.output / layout / machine / name)
            for layout, machine in (("shared", ""), ("apart", f"machine{rank}"))
        }
    (args.output / f"{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--machine-rank", type=int)
    given = parser.parse_args()
    meeting = f"file://{given.output}/meeting"
    launch(main, argparse.Namespace(**vars(given), num_gpus=1, num_machines=2, dist_url=meeting))
