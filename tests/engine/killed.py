"""A small training that is killed again and again and resumed, and the same training without interruption.

As a script: trains in the folder "whole" without interruption, and in "killed" with a SIGKILL at each of the moments.
Processes are forks of this one, which has imported everything already.
"""

import io
import os
import pkgutil
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import torch

from dinat_backbone import add_dinat_config
from mask2former import setup_cfg
from mask2former.engine import Trainer, set_up_run
from mask2former.engine.metrics_log import draw_loss_curves
from tests.conftest import ROOT, load_script
from tests.tiny import TINY

CONFIG = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
SETTINGS = {
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": "('shapes_val_panoptic',)",
    "INPUT.IMAGE_SIZE": 64,
    "MODEL.DINAT.DROP_PATH_RATE": 0.3,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "SEED": 4,
    "SOLVER.ACCUMULATE_STEPS": 2,
    "SOLVER.BASE_LR": 0.003,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.STEPS": "(5,)",
    "SOLVER.WARMUP_ITERS": 4,
    "TEST.BEST_METRIC": "validation/total_loss",
    "TEST.EVAL_PERIOD": 2,
    "TEST.VALIDATION_IMAGES": 2,
    "TEST.VALIDATION_LOSS": True,
}
# Function, number of the call in the process that is killed, and whether the kill comes before, within or after it.
MOMENTS = (
    ("mask2former.engine.TrainLoop.run_step", 3, "before"),  # there is an evaluation, but no checkpoint
    ("torch.save", 1, "within"),  # model_best.pth
    ("torch.save", 2, "within"),  # model_0000002.pth
    ("mask2former.checkpoint.Checkpointer.tag_last_checkpoint", 1, "before"),
    ("mask2former.engine.TrainLoop.run_step", 5, "after"),
    ("mask2former.engine.Trainer.test", 2, "before"),  # the evaluation after model_0000005.pth
    ("mask2former.evaluation.StreamingEvaluator.process", 2, "before"),  # the same, made up for
    ("mask2former.engine.hooks.BestWeights._best_checking", 1, "after"),
    ("mask2former.engine.metrics_log.MetricsWriter.write", 1, "after"),
    ("mask2former.checkpoint.Checkpointer.tag_last_checkpoint", 1, "after"),  # model_final.pth
    ("mask2former.evaluation.StreamingEvaluator.evaluate", 1, "after"),
    ("mask2former.engine.metrics_log.MetricsWriter.write", 1, "before"),  # results of the last evaluation
)


def train(folder):
    """Train in this process, from the last checkpoint of the folder if it has one."""
    given = {**SETTINGS, "OUTPUT_DIR": folder}
    cfg = setup_cfg(CONFIG, [*TINY, *(str(word) for pair in given.items() for word in pair)], extend=[add_dinat_config])
    set_up_run(cfg, "")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def killing(name, call, when):
    """Patch a function so that a call of it kills this process."""
    function = pkgutil.resolve_name(name)
    is_class_method = hasattr(function, "__func__")
    function = getattr(function, "__func__", function)
    calls = []

    def stand_in(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            if when == "within":
                content, file = io.BytesIO(), args[1]
                function(args[0], content)
                file.write(content.getvalue()[: len(content.getvalue()) // 2])
                file.flush()
            elif when == "after":
                function(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return mock.patch(name, classmethod(stand_in) if is_class_method else stand_in)


def in_fork(folder, *moment):
    """Train in a fork of this process, and return the signal that ended it, or 0."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        status = 1
        try:
            if moment:
                killing(*moment).start()
            train(folder)
            status = 0
        except Exception:  # noqa: BLE001 - a fork must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.write(f"{folder.name} {moment} ended with {status} after {time.perf_counter() - start:.1f} s\n")
    return -status


def main(output):
    torch.set_num_threads(1)
    # Forks share the fonts.
    lines = output / "warm.json"
    lines.write_text('{"iteration": 1, "total_loss": 1.0}\n')
    draw_loss_curves(lines, output / "warm.png")
    load_script("datasets/prepare_shapes.py").prepare(output, train=5, val=2, size=64)
    os.environ["DETECTRON2_DATASETS"] = str(output)
    assert in_fork(output / "whole") == 0
    for moment in MOMENTS:
        assert in_fork(output / "killed", *moment) == signal.SIGKILL, moment
    assert in_fork(output / "killed") == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
