#!/usr/bin/env python
"""Train a model, or evaluate one.

    python train_net.py --config-file configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml
    python train_net.py --config-file F --eval-only MODEL.WEIGHTS model.pth
    python train_net.py --config-file F --eval-only --resume MODEL.WEIGHTS model.pth    # after an interruption
    python train_net.py --config-file F --num-gpus 8 --resume OUTPUT_DIR output/run SOLVER.IMS_PER_BATCH 16
    torchrun --nproc-per-node 2 train_net.py --config-file F MODEL.DEVICE cpu

OUTPUT_DIR gets checkpoints, log.txt, metrics.json (a line of losses and metrics every 20 iterations), events for
TensorBoard, and inference/ with predictions, metrics.json and speed.json of the last evaluation. There are also
model_final_ema.pth with SOLVER.EMA, model_best.pth with TEST.BEST_METRIC, and losses.png with TEST.VALIDATION_LOSS.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from mask2former import ConfigError, setup_cfg
from mask2former.data import build_test_loader, build_train_loader, build_validation_loader, check_agreement
from mask2former.data.datasets import (
    AnnotationError,
    MissingDatasetError,
    dataset_metadata,
    register_custom_datasets,
)
from mask2former.data.image_io import ImageReadError
from mask2former.engine import (
    BaseTrainer,
    Checkpointer,
    CheckpointError,
    DeviceError,
    LaunchError,
    NonFiniteLossError,
    available_device,
    launch,
    report_errors,
    set_up_run,
)
from mask2former.evaluation import Batches, EvaluationError, StreamingEvaluator, build_evaluator
from mask2former.solver import build_lr_scheduler, build_optimizer

# What a user can mend: shown as a message, without a traceback.
EXPECTED_ERRORS = (
    AnnotationError,
    CheckpointError,
    ConfigError,
    DeviceError,
    EvaluationError,
    ImageReadError,
    LaunchError,
    MissingDatasetError,
    NonFiniteLossError,
)


class Trainer(BaseTrainer):
    """Builds each part from the config by the packages' own builders."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the published parameter groups."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule of SOLVER.LR_SCHEDULER_NAME."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Batches of DATASETS.TRAIN without end."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, skip: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> Batches:
        """The images of a data set that fall to this process, each once, without those to skip."""
        return build_test_loader(cfg, dataset_name, skip)

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Batches:
        """Images of DATASETS.TEST with the targets of a training."""
        return build_validation_loader(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
    ) -> StreamingEvaluator:
        """The evaluator of the data set's kind."""
        return build_evaluator(cfg, dataset_name, output_dir)


def get_config(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file with `KEY VALUE` overrides, all keys known, not frozen.

    Raises:
        ConfigError: a missing file, an unknown key, or a value that does not fit.
    """
    return setup_cfg(config_file, opts)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    examples = __doc__.split("\n\n", 1)[1]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and end")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from OUTPUT_DIR's last checkpoint, if there is one; an evaluation, with the images still missing",
    )
    parser.add_argument("--allow-partial", action="store_true", help="load what fits of a checkpoint that does not fit")
    parser.add_argument("--allow-pickle", action="store_true", help="open a .pkl of MODEL.WEIGHTS, which can run code")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of all errors")
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes per machine: a GPU each, or none on a CPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where several machines meet: tcp://HOST:PORT of the first"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    return parser.parse_intermixed_args(arguments)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a run, frozen, with a device that exists.

    Raises:
        ConfigError: see `get_config`; or a data set that nobody registered, or that the config does not fit.
        DeviceError: the command line asks for a GPU and there is none.
    """
    cfg = get_config(args.config_file, args.opts)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, Path(args.config_file).parent)
    try:
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            dataset_metadata(name)
    except ValueError as error:
        raise ConfigError(f"DATASETS: {error}") from error
    check_agreement(cfg)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in args.opts)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """What each process does: train or evaluate. Returns the results of the last evaluation."""
    cfg = setup(args)
    set_up_run(cfg, shlex.join(sys.argv))
    if not torch.cuda.is_available() and "MODEL.DEVICE" not in args.opts:
        logging.getLogger("mask2former").warning("No GPU found: running on the CPU")
    loading = {"allow_partial": args.allow_partial, "allow_pickle": args.allow_pickle}
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, prefer_average=cfg.SOLVER.EMA.ENABLED, **loading)
        # An evaluation of weights that the user names goes on with these, also where a training left others.
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume and "MODEL.WEIGHTS" not in args.opts)
        return Trainer.test(cfg, model, resume=args.resume)
    trainer = Trainer(cfg, **loading)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    with report_errors(EXPECTED_ERRORS, debug=args.debug):
        launch(main, args, device=setup(args).MODEL.DEVICE)


if __name__ == "__main__":
    run()
