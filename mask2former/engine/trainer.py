"""Detectron2's default trainer on any device, with our loop and checkpoints."""

import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.utils import comm

from mask2former.engine.checkpoint import Checkpointer
from mask2former.engine.train_loop import TrainLoop


class BaseTrainer(DefaultTrainer):
    """`DefaultTrainer` that also runs on CPUs, in one process or several.

    Differences: bfloat16 autocast instead of scaled float16 where SOLVER.AMP.ENABLED is set; DistributedDataParallel
    without a GPU; our `Checkpointer`; a run that had finished is only evaluated when it is resumed.
    """

    def __init__(self, cfg: CfgNode, *, allow_partial: bool = False, allow_pickle: bool = False):
        """Build everything that `cfg` names.

        Args:
            cfg: the config, all keys known.
            allow_partial: start from what fits of MODEL.WEIGHTS, where it does not fit exactly.
            allow_pickle: MODEL.WEIGHTS may be a `.pkl`, which can run any code.
        """
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        device_ids = [comm.get_local_rank()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = TrainLoop(model, data_loader, optimizer, amp=cfg.SOLVER.AMP.ENABLED)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=allow_partial,
            allow_pickle=allow_pickle,
            accept_backbone=True,
            trainer=weakref.proxy(self),
        )
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any] | None:
        """Train to SOLVER.MAX_ITER, evaluating on the way and at the end.

        Returns:
            The last evaluation's results on the main process; None where nothing was evaluated.
        """
        if self.start_iter >= self.max_iter:
            logging.getLogger(__name__).info("Already trained for %d iterations: evaluating only", self.max_iter)
            return self.test(self.cfg, self._trainer.model)
        super().train()
        return getattr(self, "_last_eval_results", None)
