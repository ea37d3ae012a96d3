"""Detectron2's default trainer with the data, loss, optimiser, checkpoints and evaluation of this project."""

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from dinat_common.errors import ConfigError
from dinat_common.files import write_json
from mask2former.checkpoint import AVERAGE_KEY, Checkpointer
from mask2former.data import build_test_loader, build_train_loader, build_validation_loader
from mask2former.data.training_order import TrainingLoader
from mask2former.engine.batch_norm import replace_sync_batch_norms
from mask2former.engine.hooks import AverageHook, BestWeights, build_average, validation_losses
from mask2former.engine.metrics_log import EventsWriter, MetricsLog, MetricsWriter
from mask2former.engine.resuming import config_differences, fit_optimizer_state, parameter_names, set_iteration
from mask2former.engine.run import reproducible_threads, warn_of_emulated_bfloat16
from mask2former.engine.train_loop import TrainLoop
from mask2former.evaluation import (
    Speed,
    StreamingEvaluator,
    build_evaluator,
    evaluation_fingerprint,
    json_ready,
    results_table,
    run_inference,
    weights_digest,
    write_speed,
)
from mask2former.solver import build_lr_scheduler, build_optimizer, iterations_of_epochs, scale_learning_rate
from mask2former.test_time_augmentation import augment_at_test_time, check_augmentation


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for GPUs and CPUs, in one process or several.

    Differences from Detectron2: bfloat16 autocast instead of scaled float16 (SOLVER.AMP.ENABLED);
    DistributedDataParallel without a GPU; our `Checkpointer`; data sets for evaluation are checked before the training;
    one table per data set; a finished run is only evaluated when it is resumed; the settings of a resumed run are those
    of its config; the options of docs/fine_tuning.md.
    Subclasses can override each of the `build_*` methods and `test`.

    Example::

        trainer = Trainer(setup_cfg(config_file))
        trainer.resume_or_load(resume=False)
        results = trainer.train()
    """

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)
    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)
    build_validation_loader = staticmethod(build_validation_loader)
    build_evaluator = staticmethod(build_evaluator)

    def __init__(self, cfg: CfgNode, *, allow_partial: bool = False, allow_pickle: bool = False):
        """Build everything that the config names.

        Args:
            cfg: Config with all keys, for example from `setup_cfg`.
            allow_partial: Whether to start from the weights that fit if MODEL.WEIGHTS does not fit exactly.
            allow_pickle: Whether MODEL.WEIGHTS may be a `.pkl`, which can execute arbitrary code.
        """
        TrainerBase.__init__(self)
        self._given_cfg = cfg
        self._resumed_from = ""  # config of the checkpoint
        self._afresh: list[str] = []
        cfg = scale_learning_rate(self.auto_scale_workers(cfg, comm.get_world_size()))
        self.start_iter = 0
        self._last_eval_results: dict[str, Any] | None = None
        self._repeating = False  # the evaluation after the last checkpoint

        with torch.random.fork_rng([], enabled=cfg.SEED >= 0):
            if cfg.SEED >= 0:
                # As `set_up_run` does, so that a run from Python starts from the same weights again.
                torch.default_generator.manual_seed(cfg.SEED + comm.get_rank())
            model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if cfg.SOLVER.EPOCHS:
            if not isinstance(data_loader, TrainingLoader):
                raise ConfigError(
                    f"SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS}, but the training loader ({type(data_loader).__name__}) has "
                    "no epochs: set SOLVER.MAX_ITER, and SOLVER.EPOCHS to 0"
                )
            cfg = iterations_of_epochs(cfg, data_loader.images_per_epoch())
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        for dataset_name in cfg.DATASETS.TEST:
            # Missing files should stop the run now and not after the training.
            DatasetCatalog.get(dataset_name)
            self.build_evaluator(cfg, dataset_name)
        self._validation = self.build_validation_loader(cfg) if cfg.TEST.VALIDATION_LOSS else None
        self._average = build_average(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self._plain_model = model  # without DistributedDataParallel
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        device_ids = [comm.get_local_rank()] if on_gpu else None
        # Without this, DistributedDataParallel arranges gradients anew after the first step, and sums of more than two
        # differ in the last bits between the first step after a start and later ones.
        fixed_sums = not on_gpu and comm.get_world_size() > 2
        model = create_ddp_model(
            model, broadcast_buffers=False, device_ids=device_ids, find_unused_parameters=fixed_sums
        )
        if cfg.SOLVER.AMP.ENABLED:
            warn_of_emulated_bfloat16(cfg.MODEL.DEVICE)
        accumulate = cfg.SOLVER.ACCUMULATE_STEPS
        self._trainer = TrainLoop(
            model,
            data_loader,
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            accumulate_steps=accumulate,
            seed=cfg.SEED,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # As in Detectron2, a weak reference, so that trainer and checkpointer are freed with the last reference.
        states: dict[str, Any] = {"trainer": weakref.proxy(self)}
        if self._average is not None:
            states[AVERAGE_KEY] = self._average
        self.checkpointer: Checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=allow_partial,
            allow_pickle=allow_pickle,
            starts_training=True,
            **states,
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of a config with random weights.

        Raises:
            ConfigError: The config can't be used, or has TEST.AUG.ENABLED for a model without augmentation.
        """
        check_augmentation(cfg)  # not only when it is evaluated, which may be hours later
        model = build_model(cfg)
        if torch.device(cfg.MODEL.DEVICE).type != "cuda" and torch.distributed.is_initialized():
            replace_sync_batch_norms(model)
        total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad) / 1e6
        message = f"{cfg.MODEL.META_ARCHITECTURE} with {total:.1f} million parameters"
        logging.getLogger(__name__).info(message + (f", {frozen:.1f} of them frozen" if frozen else ""))
        return model

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Build Detectron2's hooks and those of SOLVER.EMA, TEST.BEST_METRIC and TEST.VALIDATION_LOSS."""
        cfg, evaluated = self.cfg.clone(), self._plain_model
        found: list[hooks.HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self._average is not None:
            evaluated = self._average.module
            found.insert(0, AverageHook(self._average, self._plain_model, self.checkpointer))
        model = self._trainer.model
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model):
            cfg.defrost()
            cfg.DATALOADER.NUM_WORKERS = 0  # saves memory, as in Detectron2
            batches = self.build_train_loader(cfg)
            found.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, model, batches, cfg.TEST.PRECISE_BN.NUM_ITER))
        if comm.is_main_process():
            found.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        found.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: self._evaluate(evaluated)))
        if comm.is_main_process() and cfg.TEST.BEST_METRIC:
            found.append(BestWeights(cfg.TEST.EVAL_PERIOD, self.checkpointer, evaluated, cfg.TEST.BEST_METRIC))
        found.append(MetricsLog(self.build_writers() if comm.is_main_process() else [], cfg))
        return found

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of the log, `metrics.json` and TensorBoard's events."""
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            CommonMetricPrinter(self.max_iter),
            MetricsWriter(folder / "metrics.json"),
            EventsWriter(folder),
        ]

    def before_train(self) -> None:
        """Prepare the hooks, and make up for what a kill prevented after the last checkpoint was written."""
        super().before_train()
        lacking = any(hook.lacks_last_iteration() for hook in self._hooks if isinstance(hook, MetricsLog))
        if not any(comm.all_gather(lacking)) or not 0 < self.start_iter <= self.max_iter:
            return
        iteration = self.iter
        self.iter = self.storage.iter = self.start_iter - 1
        self._repeating = True
        for hook in self._hooks:
            # Those that come after the checkpoint.
            if isinstance(hook, hooks.EvalHook | hooks.BestCheckpointer | hooks.PeriodicWriter):
                hook.after_step()
        self._repeating = False
        self.iter = self.storage.iter = iteration

    def _evaluate(self, model: Any) -> dict[str, Any]:
        """Evaluate during or after the training; test-time augmentation waits for the end."""
        if self.iter + 1 == self.max_iter and not self._repeating:
            return {}  # the last iteration failed, for example because its checkpoint could not be written
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TEST.AUG.ENABLED = cfg.TEST.AUG.ENABLED and self.iter >= self.max_iter
        # A run may have been killed during this evaluation, at the end of the training or after a checkpoint.
        resume = self._repeating or 0 < self.max_iter <= self.start_iter
        self._last_eval_results = self.test(cfg, model, resume=resume)
        losses = {} if self._validation is None else validation_losses(model, self._validation)
        return {**self._last_eval_results, "validation": losses} if losses else self._last_eval_results

    def train(self) -> dict[str, Any] | None:
        """Train to SOLVER.MAX_ITER, with evaluations on the way and at the end.

        Returns:
            Results of the last evaluation on the main process; see `test`.
        """
        if self.start_iter >= self.max_iter:
            done = f"Already trained for {self.max_iter} iterations" if self.max_iter else "SOLVER.MAX_ITER is 0"
            logging.getLogger(__name__).info("%s: evaluating only", done)
            self.iter = self.max_iter
            with EventStorage(self.iter) as self.storage:
                self.before_train()
                self.after_train()
        else:
            self.checkpointer.check_space(self._trainer.optimizer)
            super().train()
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of OUTPUT_DIR if there is one and `resume` is set; else load MODEL.WEIGHTS.

        Settings of the config take precedence over those of the checkpoint. The log lists the differences, and warns of
        what has no counterpart in the checkpoint and starts afresh.

        Raises:
            CheckpointError: The file can't be used.
        """
        rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        # The average was made before the weights were loaded.
        new_average = self._average is not None and int(self._average.n_averaged) == 0
        if self._average is not None and new_average:
            self._average.module.load_state_dict(self._plain_model.state_dict())
        resumed = resume and self.checkpointer.has_checkpoint()
        self.start_iter = self.iter + 1 if resumed else 0
        self._clear_remains(resume=resume)
        if not resumed:
            return
        logger = logging.getLogger(__name__)
        if differences := self._resumed_from and config_differences(self._resumed_from, self._given_cfg):
            logger.info("Settings that differ from the checkpoint's; those of now hold:\n%s", differences)
        afresh = list(self._afresh)
        if new_average:
            afresh.append("the average (SOLVER.EMA) starts from the weights of the checkpoint")
        elif AVERAGE_KEY in rest:
            afresh.append("the average of the checkpoint (SOLVER.EMA) is left out")
        if afresh:
            logger.warning("Resumed with other settings, weights and iteration are kept: %s", "; ".join(afresh))

    def _clear_remains(self, *, resume: bool) -> None:
        """Remove from OUTPUT_DIR what would pass for a part of this run."""
        folder = Path(self.cfg.OUTPUT_DIR)
        if comm.is_main_process():
            for unfinished in folder.glob(".*.pth.tmp"):
                unfinished.unlink()
            best = folder / "model_best.pth"
            started_from_it = Path(self.cfg.MODEL.WEIGHTS).resolve() == best.resolve()
            if not resume and self.cfg.TEST.BEST_METRIC and best.is_file() and not started_from_it:
                kept = best.rename(folder / "model_best_earlier.pth")
                logging.getLogger(__name__).info("The best weights of an earlier run are now called %s", kept)
        if resume and self.start_iter == 0:
            # Killed before its first checkpoint.
            for hook in self._hooks:
                if isinstance(hook, MetricsLog):
                    hook.load_state_dict(MetricsLog.EMPTY)

    def state_dict(self) -> dict[str, Any]:
        """State of iteration, hooks and optimiser (which Detectron2 0.6 omits), parameter names, and the config."""
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "parameter_names": parameter_names(self._plain_model, self._trainer.optimizer),
            "config": self._given_cfg.dump(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of `state_dict` as far as the settings of this run allow."""
        hook_states = dict(state_dict.get("hooks", {}))
        loop = state_dict.get("_trainer", {})
        optimizer = self._trainer.optimizer
        names = parameter_names(self._plain_model, optimizer)
        saved = loop.get("optimizer")
        state, self._afresh = fit_optimizer_state(optimizer, names, saved, state_dict.get("parameter_names"))
        done = state_dict["iteration"] + 1
        if done > self.max_iter:
            # Nothing is left to train, and schedules may have no value here.
            hook_states.pop("LRScheduler", None)
        elif (rates := set_iteration(self.scheduler, done)) is not None:
            hook_states.pop("LRScheduler", None)
            for group, rate in zip(state["param_groups"], rates, strict=True):
                group["lr"] = rate
        elif not self._afresh:
            state["param_groups"] = saved["param_groups"]
        TrainerBase.load_state_dict(self, {**state_dict, "hooks": hook_states})
        self._trainer.load_state_dict({"iteration": state_dict["iteration"], **loop, "optimizer": state})
        self._resumed_from = state_dict.get("config", "")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[StreamingEvaluator] | None = None,
        *,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Evaluate a model on DATASETS.TEST; with TEST.AUG.ENABLED also with test-time augmentation.

        Predictions are written to `OUTPUT_DIR/inference` (augmented ones to its subfolder `tta`), in one folder per
        data set if there are several. The main process logs a table per data set and writes two files there:
        metrics.json, {data set: {task: {metric: percent, or null if there was nothing to measure}}}, and
        speed.json, {data set: `Speed`}, where `_TTA` is appended to the data set's name for the augmented run.

        Args:
            cfg: Config of the model.
            model: Model to evaluate.
            evaluators: Evaluators, one per data set; by default those of `build_evaluator`.
            resume: Whether to predict only the images that an interrupted evaluation of these weights and this config
                did not reach.

        Returns:
            On the main process {task: {metric: percent}}, by data set if there are several. Augmented tasks end in
            _TTA. Empty on other processes.
        """
        check_augmentation(cfg)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        results: dict[str, dict[str, Any]] = {}
        speeds: dict[str, Speed | None] = {}
        folder = Path(cfg.OUTPUT_DIR, "inference")
        # Computed once, since it reads all weights.
        weights = weights_digest(model)
        with reproducible_threads(cfg.MODEL.DEVICE):
            for index, name in enumerate(cfg.DATASETS.TEST):
                results[name] = {}
                for augmented in (False, True) if cfg.TEST.AUG.ENABLED else (False,):
                    run_cfg, network = augment_at_test_time(cfg, model) if augmented else (cfg, model)
                    place = folder / "tta" if augmented else folder
                    place = place / name if len(cfg.DATASETS.TEST) > 1 else place
                    if evaluators is None or augmented:
                        evaluator = cls.build_evaluator(run_cfg, name, place)
                    else:
                        evaluator = evaluators[index]
                    evaluator.start(evaluation_fingerprint(run_cfg, name, weights, augmented=augmented), resume=resume)
                    batches = cls.build_test_loader(run_cfg, name, evaluator.is_finished)
                    ending = "_TTA" if augmented else ""
                    speeds[name + ending] = run_inference(network, batches, evaluator)
                    tasks = evaluator.evaluate() or {}
                    results[name].update({task + ending: metrics for task, metrics in tasks.items()})
                if comm.is_main_process():
                    write_speed(folder / "speed.json", speeds, keep=resume)
        if not comm.is_main_process() or not results:
            return {}
        for name, tasks in results.items():
            logging.getLogger(__name__).info(results_table(name, tasks))
        write_json(folder / "metrics.json", json_ready(results), indent=2)
        return results if len(results) > 1 else next(iter(results.values()))
