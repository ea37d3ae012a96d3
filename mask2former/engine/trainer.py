"""Detectron2's default trainer on any device, with our loop, checkpoints and reports."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, HookBase, PeriodicWriter
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.checkpoint.checkpointer import Checkpointer
from mask2former.engine.averaging import AVERAGE_KEY, AverageHook, build_average
from mask2former.engine.best import BestModel
from mask2former.engine.device import reproducible_threads
from mask2former.engine.train_loop import TrainLoop
from mask2former.engine.validation import validation_losses
from mask2former.engine.writing import CurveWriter
from mask2former.evaluation import (
    Batches,
    Speed,
    StreamingEvaluator,
    evaluation_fingerprint,
    json_ready,
    results_table,
    run_inference,
    weights_digest,
    write_speed,
)
from mask2former.maskformer_model import MaskFormer
from mask2former.solver import scale_learning_rate
from mask2former.test_time_augmentation import ModelWithTTA, SemanticSegmentorWithTTA
from mask2former.utils.files import write_json


class BaseTrainer(DefaultTrainer):
    """`DefaultTrainer` that also runs on CPUs, in one process or several.

    Differences: bfloat16 autocast instead of scaled float16 where SOLVER.AMP.ENABLED is set; DistributedDataParallel
    without a GPU; our `Checkpointer`; data sets to evaluate on are looked for before the training; one table per data
    set; a run that had finished is only evaluated when it is resumed; what docs/fine_tuning.md describes. Subclasses
    say how to build what the config names.
    """

    def __init__(self, cfg: CfgNode, *, allow_partial: bool = False, allow_pickle: bool = False):
        """Build everything that `cfg` names.

        Args:
            cfg: the config, all keys known.
            allow_partial: start from what fits of MODEL.WEIGHTS, where it does not fit exactly.
            allow_pickle: MODEL.WEIGHTS may be a `.pkl`, which can run any code.
        """
        TrainerBase.__init__(self)
        self.cfg = cfg = scale_learning_rate(self.auto_scale_workers(cfg, comm.get_world_size()))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._last_eval_results: dict[str, Any] | None = None

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        for dataset_name in cfg.DATASETS.TEST:
            # What is missing should be known now and not when the training is done.
            DatasetCatalog.get(dataset_name)
            self.build_evaluator(cfg, dataset_name)
        self._validation = self.build_validation_loader(cfg) if cfg.TEST.VALIDATION_LOSS else None
        self._average = build_average(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self._plain_model = model  # not wrapped for several processes
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        device_ids = [comm.get_local_rank()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        accumulate = cfg.SOLVER.ACCUMULATE_STEPS
        self._trainer = TrainLoop(
            model, data_loader, optimizer, amp=cfg.SOLVER.AMP.ENABLED, accumulate_steps=accumulate
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        states: dict[str, Any] = {"trainer": weakref.proxy(self)}
        if self._average is not None:
            states[AVERAGE_KEY] = self._average
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=allow_partial,
            allow_pickle=allow_pickle,
            accept_backbone=True,
            accept_other_classes=True,
            **states,
        )
        self._best = BestModel(self.checkpointer, cfg.TEST.BEST_METRIC) if cfg.TEST.BEST_METRIC else None
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of `cfg` with random weights."""
        model = build_model(cfg)
        sizes = dict.fromkeys((False, True), 0.0)
        for parameter in model.parameters():
            sizes[parameter.requires_grad] += parameter.numel() / 1e6
        frozen = f", {sizes[False]:.1f} of them frozen" if sizes[False] else ""
        logging.getLogger(__name__).info(
            "%s with %.1f million parameters%s", cfg.MODEL.META_ARCHITECTURE, sum(sizes.values()), frozen
        )
        return model

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, but augmentation at test time is left to the evaluation after the training."""
        periodic = self.cfg.clone()
        periodic.defrost()
        periodic.TEST.AUG.ENABLED = False

        def evaluate() -> dict[str, Any]:
            done = self.iter >= self.max_iter
            # A training that was finished before may have been interrupted while it was evaluated.
            resume = 0 < self.max_iter <= self.start_iter
            model = self._plain_model if self._average is None else self._average.module
            self._last_eval_results = self.test(self.cfg if done else periodic, model, resume=resume)
            return self._observe(self._last_eval_results, model)

        node = self.cfg.TEST
        hooks: list[HookBase | None] = []
        if self._average is not None:
            hooks.append(AverageHook(self._average, self._plain_model, self.checkpointer))
        for default in super().build_hooks():
            if isinstance(default, EvalHook):
                hooks.append(EvalHook(node.EVAL_PERIOD, evaluate))
            elif isinstance(default, PeriodicWriter) and node.VALIDATION_LOSS:
                hooks.append(CurveWriter(default._writers, self.cfg.OUTPUT_DIR, node.EVAL_PERIOD, node.BEST_METRIC))
            else:
                hooks.append(default)
        return hooks

    def _observe(self, results: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """What is logged of an evaluation: its results, and losses; the best model is kept."""
        if self._validation is not None:
            losses = validation_losses(model, self._validation)
            results = {**results, "validation": losses} if losses else results
        if self._best is not None and results:
            self._best.update(flatten_results_dict(results), model, self.iter)
        return results

    def train(self) -> dict[str, Any] | None:
        """Train to SOLVER.MAX_ITER, evaluating on the way and at the end.

        Returns:
            The last evaluation's results on the main process, see `test`.
        """
        if self.start_iter >= self.max_iter:
            logging.getLogger(__name__).info("Already trained for %d iterations: evaluating only", self.max_iter)
            self.iter = self.max_iter
            with EventStorage(self.iter) as self.storage:
                self.after_train()
        else:
            super().train()
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of OUTPUT_DIR with all it holds, else MODEL.WEIGHTS; see `Checkpointer`."""
        super().resume_or_load(resume=resume)
        if self._best is not None and self.start_iter > 0:
            self._best.resume()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the model: iteration, hooks, optimiser (which Detectron2 0.6 forgets)."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, skip: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> Batches:
        """Build the loader of this process's share of a data set, without what `skip` says of its dicts."""
        raise NotImplementedError

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Batches:
        """Build the loader of this process's share of the images to compute losses on, one in a batch, with targets."""
        raise NotImplementedError

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
    ) -> StreamingEvaluator:
        """Build the evaluator of a data set, which keeps predictions in `output_dir`, None: nowhere."""
        raise NotImplementedError

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[StreamingEvaluator] | None = None,
        *,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Evaluate a model on DATASETS.TEST; with TEST.AUG.ENABLED also with augmentation.

        Predictions go to `OUTPUT_DIR/inference` (augmented ones to `tta` there), a folder per data set where there are
        several. The main process logs a table per data set and writes two files there:
        metrics.json, {data set: {task: {metric: percent, or null where there was nothing to measure}}}, and
        speed.json, {data set: `Speed`}, where the augmented run of a data set has _TTA behind its name.

        Args:
            cfg: the config.
            model: with the weights to evaluate.
            evaluators: one per data set, instead of those `build_evaluator` makes.
            resume: predict only images that an interrupted evaluation of these weights and this config did not reach.

        Returns:
            On the main process {task: {metric: percent}}, by data set where there are several. What was augmented has
            tasks that end in _TTA. Empty on other processes.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        results: dict[str, dict[str, Any]] = {}
        speeds: dict[str, Speed | None] = {}
        # Once: it reads all weights.
        weights = weights_digest(model)
        with reproducible_threads(cfg.MODEL.DEVICE):
            for index, name in enumerate(cfg.DATASETS.TEST):
                folder = _prediction_folder(cfg, name)
                evaluator = cls.build_evaluator(cfg, name, folder) if evaluators is None else evaluators[index]
                evaluator.start(evaluation_fingerprint(cfg, name, weights, augmented=False), resume=resume)
                results[name], speeds[name] = cls._evaluate(cfg, name, model, evaluator)
                if cfg.TEST.AUG.ENABLED:
                    augmented, speeds[f"{name}_TTA"] = cls._test_with_augmentation(cfg, name, model, weights, resume)
                    results[name].update(augmented)
                if comm.is_main_process():
                    write_speed(Path(cfg.OUTPUT_DIR, "inference", "speed.json"), speeds, keep=resume)
        if not comm.is_main_process() or not results:
            return {}
        for name, tasks in results.items():
            logging.getLogger(__name__).info(results_table(name, tasks))
        write_json(Path(cfg.OUTPUT_DIR, "inference", "metrics.json"), json_ready(results), indent=2)
        return results if len(results) > 1 else next(iter(results.values()))

    @classmethod
    def _evaluate(
        cls, cfg: CfgNode, dataset_name: str, model: nn.Module, evaluator: StreamingEvaluator
    ) -> tuple[dict[str, Any], Speed | None]:
        """The results of a started evaluator, empty but on the main process, and the speed."""
        batches = cls.build_test_loader(cfg, dataset_name, evaluator.is_finished)
        speed = run_inference(model, batches, evaluator)
        return evaluator.evaluate() or {}, speed

    @classmethod
    def _test_with_augmentation(
        cls, cfg: CfgNode, dataset_name: str, model: nn.Module, weights: str, resume: bool
    ) -> tuple[dict[str, Any], Speed | None]:
        augment = ModelWithTTA
        if not isinstance(model, MaskFormer):
            # Of another architecture only the class maps are known to be of a kind that can be averaged.
            augment, cfg = SemanticSegmentorWithTTA, cfg.clone()
            cfg.defrost()
            tasks = cfg.MODEL.MASK_FORMER.TEST
            tasks.PANOPTIC_ON, tasks.INSTANCE_ON, tasks.SEMANTIC_ON = False, False, True
        evaluator = cls.build_evaluator(cfg, dataset_name, _prediction_folder(cfg, dataset_name, "tta"))
        evaluator.start(evaluation_fingerprint(cfg, dataset_name, weights, augmented=True), resume=resume)
        results, speed = cls._evaluate(cfg, dataset_name, augment(cfg, model), evaluator)
        return {f"{task}_TTA": metrics for task, metrics in results.items()}, speed


def _prediction_folder(cfg: CfgNode, dataset_name: str, *parts: str) -> Path:
    folder = Path(cfg.OUTPUT_DIR, "inference", *parts)
    return folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder
