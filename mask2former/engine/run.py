"""What a run does before anything else: logs, seeds, and a copy of its config."""

import logging
import os

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from mask2former.utils.files import atomic_write

_LOGGERS = ("fvcore", "detectron2", "mask2former", "dinat_backbone")


def set_up_run(cfg: CfgNode, command: str) -> None:
    """Open the logs of OUTPUT_DIR, write `config.yaml` there, and seed the generators, each process with its own seed.

    Args:
        cfg: the config of the run.
        command: how it was started, for the log.
    """
    rank = comm.get_rank()
    for name in _LOGGERS:
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    if comm.is_main_process():
        config_file = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with atomic_write(config_file) as file:
            file.write(cfg.dump())
        logging.getLogger(__name__).info(
            "%s\nPyTorch %s, Detectron2 %s, %d process(es) on %s; the full config is in %s",
            command,
            torch.__version__,
            detectron2.__version__,
            comm.get_world_size(),
            cfg.MODEL.DEVICE,
            config_file,
        )
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
