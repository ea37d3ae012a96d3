#!/usr/bin/env python
"""Train a model, or evaluate one.

    python train_net.py --config-file configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml
    python train_net.py --config-file F --eval-only MODEL.WEIGHTS model.pth
    python train_net.py --config-file F --eval-only --resume MODEL.WEIGHTS model.pth    # after an interruption
    python train_net.py --config-file F --num-gpus 8 --resume OUTPUT_DIR output/run SOLVER.IMS_PER_BATCH 16
    torchrun --nproc-per-node 2 train_net.py --config-file F MODEL.DEVICE cpu

OUTPUT_DIR receives checkpoints, log.txt, metrics.json (a line of losses and metrics every 20 iterations and after each
evaluation), events for TensorBoard, and inference/ with predictions, metrics.json and speed.json of the last
evaluation. SOLVER.EMA adds model_final_ema.pth, TEST.BEST_METRIC adds model_best.pth, and TEST.VALIDATION_LOSS adds
losses.png. With --resume, a run that was killed ends as if it had not been.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from dinat_common.errors import report_errors, report_interrupt, run_script
from dinat_common.files import check_folder, writing_in
from mask2former.checkpoint import Checkpointer
from mask2former.config import setup_cfg
from mask2former.data import check_agreement
from mask2former.data.datasets import register_custom_datasets
from mask2former.engine import Trainer, available_device, default_processes, launch, set_up_run
from mask2former.modeling.meta_arch.base import round_weights

__all__ = ["Trainer", "get_config"]


def get_config(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file and apply `KEY VALUE` overrides; the result is not frozen.

    Raises:
        ConfigError: The file is missing, a key is unknown, or a value does not fit.
    """
    return setup_cfg(config_file, opts)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="F", help="a file of configs/")
    add("--eval-only", action="store_true", help="only evaluate MODEL.WEIGHTS")
    add("--resume", action="store_true", help="continue from OUTPUT_DIR's last checkpoint or interrupted evaluation")
    add("--allow-partial", action="store_true", help="load the weights that fit from a checkpoint that does not fit")
    add("--allow-pickle", action="store_true", help="open a .pkl of MODEL.WEIGHTS, which can execute arbitrary code")
    add("--debug", action="store_true", help="show tracebacks of all errors")
    processes = "processes per machine, each with a GPU or on the CPU; default: one, but one per core on a CPU"
    add("--num-gpus", type=int, metavar="N", help=processes)
    add("--num-machines", type=int, default=1, metavar="N")
    add("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="address of the first machine, tcp://HOST:PORT")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    return parser.parse_intermixed_args(arguments)


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the frozen config of a run, with registered data sets and an available device.

    Raises:
        ConfigError: The config can't be read, or names a data set that is unknown or does not fit.
        DeviceError: The command line asks for a GPU and the machine has none.
    """
    cfg = get_config(args.config_file, args.opts)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, Path(args.config_file).parent)
    check_agreement(cfg)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in args.opts)
    cfg.freeze()
    return cfg


def main(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate in one of the processes; returns the results of the last evaluation."""
    with writing_in(cfg.OUTPUT_DIR):
        return _main(cfg, args)


def _main(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any] | None:
    set_up_run(cfg, shlex.join(sys.argv))
    if not torch.cuda.is_available() and "MODEL.DEVICE" not in args.opts:
        logging.getLogger("mask2former").warning("No GPU found: running on the CPU")
    loading = {"allow_partial": args.allow_partial, "allow_pickle": args.allow_pickle}
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, prefer_average=cfg.SOLVER.EMA.ENABLED, **loading)
        # MODEL.WEIGHTS on the command line takes precedence over the checkpoints of a training in OUTPUT_DIR.
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume and "MODEL.WEIGHTS" not in args.opts)
        round_weights(model)
        return Trainer.test(cfg, model, resume=args.resume)
    trainer = Trainer(cfg, **loading)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    with report_interrupt("--resume continues from the last checkpoint"), report_errors(debug=args.debug):
        cfg = setup(args)
        check_folder(cfg.OUTPUT_DIR)
        processes = default_processes(cfg, trains=not args.eval_only)
        launch(partial(main, cfg), args, device=cfg.MODEL.DEVICE, processes=processes)


if __name__ == "__main__":
    run_script(run)
