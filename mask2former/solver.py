"""Optimiser and learning-rate schedule of the published recipes."""

import fnmatch
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dinat_common.errors import ConfigError

__all__ = [
    "build_lr_scheduler",
    "build_optimizer",
    "images_per_step",
    "iterations_of_epochs",
    "parameter_groups",
    "scale_learning_rate",
]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (
    *_BATCH_NORMS,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
# Any, since the base class does not declare the arguments that both take.
_OPTIMIZERS: dict[str, Any] = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}
_DECAYS = ("WEIGHT_DECAY", *(f"WEIGHT_DECAY_{kind}" for kind in ("NORM", "BATCH_NORM", "EMBED", "RPB")))
_COSINE_COOLDOWN = "CosineCooldownLR"
_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR", _COSINE_COOLDOWN)
_ONE_DIMENSIONAL = "1-D"
# Number of a backbone's block in the name of a parameter: its level (if it has levels), and its place there.
_BLOCK = re.compile(r"\.(?:levels|layers)\.(\d+)\.(?:blocks\.(\d+)\.)?")
_WARMUPS = ("linear", "constant")

_logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build `SOLVER.OPTIMIZER` over the parameter groups of `model`, with the configured gradient clipping.

    `CLIP_GRADIENTS.CLIP_TYPE` "full_model" clips the norm of all gradients together (DETR). Other types are
    Detectron2's, which clip each parameter.

    Raises:
        ConfigError: The optimiser is unknown, or a setting is negative.
    """
    _check_positive(cfg.SOLVER, "BASE_LR", "BACKBONE_MULTIPLIER", "MOMENTUM", *_DECAYS)
    name = cfg.SOLVER.OPTIMIZER
    if name not in _OPTIMIZERS:
        raise ConfigError(f"SOLVER.OPTIMIZER is {name!r}, expected one of {', '.join(_OPTIMIZERS)}")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    full_model = clip.ENABLED and clip.CLIP_TYPE == "full_model" and clip.CLIP_VALUE > 0
    kind: Any = _OPTIMIZERS[name] if full_model else maybe_add_gradient_clipping(cfg, _OPTIMIZERS[name])
    settings: dict[str, Any] = {"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}
    optimizer = kind(parameter_groups(cfg, model), lr=cfg.SOLVER.BASE_LR, **settings)
    if full_model:
        value, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

        def clip_all(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, value, norm_type)

        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build `SOLVER.LR_SCHEDULER_NAME`: one of Detectron2's schedules, DeepLab's WarmupPolyLR or `CosineCooldown`.

    All rates follow from the iteration alone.

    A warning names all settings of the schedule that can't take effect: a warm-up that is longer than the training, and
    STEPS that are not ascending or not before its end.

    Raises:
        ConfigError: A setting of the schedule is unknown or outside its range.
    """
    _check_schedule(cfg.SOLVER)
    cfg = cfg.clone()
    cfg.defrost()
    # Without iterations a schedule would have no values, and nothing asks for one.
    cfg.SOLVER.MAX_ITER = last = max(cfg.SOLVER.MAX_ITER, 1)
    if cfg.SOLVER.LR_SCHEDULER_NAME == _COSINE_COOLDOWN:
        end = cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR
        iterations = (last, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.COOLDOWN_ITERS)
        return LRMultiplier(optimizer, CosineCooldown(*iterations, cfg.SOLVER.WARMUP_FACTOR, end), last)
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        # The same steps; Detectron2's own class has no value after the last iteration.
        cfg.SOLVER.LR_SCHEDULER_NAME, parts = "WarmupMultiStepLR", cfg.SOLVER.NUM_DECAYS + 1
        cfg.SOLVER.STEPS = tuple(math.ceil(k * last / parts) for k in range(1, parts))
    cfg.SOLVER.STEPS = tuple(sorted({step for step in cfg.SOLVER.STEPS if step < last}))
    return build_deeplab_lr_scheduler(cfg, optimizer)


class CosineCooldown(ParamScheduler):
    """A cosine whose beginning is replaced by a warm-up, and that ends with iterations at its lowest value.

    The cosine starts at the first iteration, so that the rate jumps onto it when the warm-up ends. This is the schedule
    of timm's scripts without a "warm-up prefix" (Loshchilov and Hutter, "SGDR", ICLR 2017, with one cycle).
    """

    def __init__(self, iterations: int, warmup: int, cooldown: int, warmup_factor: float, end_factor: float):
        """Set the lengths and the rates, which are relative to the highest one.

        Args:
            iterations: Number of iterations of the training.
            warmup: Number of iterations of the warm-up, in which the rate rises linearly to the highest one.
            cooldown: Number of iterations at the end.
            warmup_factor: Rate of the first iteration.
            end_factor: Rate at the end.
        """
        self._iterations = iterations
        self._warmup = warmup
        self._length = max(1, iterations - cooldown)
        self._warmup_factor = warmup_factor
        self._end_factor = end_factor

    def __call__(self, where: float) -> float:
        """Compute the rate at a fraction `where` of the training."""
        iteration = round(where * self._iterations)
        if iteration < self._warmup:
            return self._warmup_factor + (1 - self._warmup_factor) * iteration / self._warmup
        if iteration >= self._length:
            return self._end_factor
        return self._end_factor + (1 - self._end_factor) * (1 + math.cos(math.pi * iteration / self._length)) / 2


def _check_positive(solver: CfgNode, *keys: str) -> None:
    for key in keys:
        value = solver[key]
        if value is not None and (not isinstance(value, int | float) or value < 0):
            raise ConfigError(f"SOLVER.{key} is {value!r}, expected 0 or more")


def _check_schedule(solver: CfgNode) -> None:
    name, steps, last = solver.LR_SCHEDULER_NAME, list(solver.STEPS), solver.MAX_ITER
    for key, known in (("LR_SCHEDULER_NAME", _SCHEDULES), ("WARMUP_METHOD", _WARMUPS)):
        if solver[key] not in known:
            raise ConfigError(f"SOLVER.{key} is {solver[key]!r}, expected one of {', '.join(known)}")
    _check_positive(solver, "MAX_ITER", "WARMUP_ITERS", "COOLDOWN_ITERS")
    if name in ("WarmupCosineLR", _COSINE_COOLDOWN) and not 0 <= solver.BASE_LR_END <= solver.BASE_LR > 0:
        raise ConfigError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, expected at least 0 and at most SOLVER.BASE_LR "
            f"({solver.BASE_LR}), which must be positive"
        )
    if name != "WarmupMultiStepLR":
        steps = []
    if any(step < 1 for step in steps):
        raise ConfigError(f"SOLVER.STEPS is {tuple(steps)}, expected numbers of iterations, 1 or more")
    if last == 0:
        return
    notes = []
    if last < solver.WARMUP_ITERS:
        notes.append(f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is longer than the training (SOLVER.MAX_ITER {last})")
    if steps != sorted(set(steps)):
        notes.append(f"SOLVER.STEPS {tuple(steps)} are not ascending: they are sorted, and each counts once")
    if late := [step for step in steps if step >= last]:
        behind = ", ".join(map(str, late))
        notes.append(f"SOLVER.STEPS {behind} have no effect: the training ends before (SOLVER.MAX_ITER {last})")
    if notes:
        _logger.warning("Learning rate: %s", "; ".join(notes))


def images_per_step(cfg: CfgNode) -> int:
    """Number of images of an optimiser step, over all processes.

    Raises:
        ConfigError: SOLVER.ACCUMULATE_STEPS is below 1.
    """
    steps = cfg.SOLVER.ACCUMULATE_STEPS
    if steps < 1:
        raise ConfigError(f"SOLVER.ACCUMULATE_STEPS is {steps}, expected 1 (no accumulation) or more")
    return cfg.SOLVER.IMS_PER_BATCH * steps


def iterations_of_epochs(cfg: CfgNode, images: int) -> CfgNode:
    """Turn the length of a training in epochs into iterations.

    An epoch has as many iterations as whole steps fit into the images; the last partial one is dropped.

    Args:
        cfg: Config.
        images: Number of training images of an epoch.

    Returns:
        A copy of `cfg` with MAX_ITER, WARMUP_ITERS and COOLDOWN_ITERS; `cfg` itself if SOLVER.EPOCHS is 0.

    Raises:
        ConfigError: A number of epochs is negative, or there is not one step in an epoch.
    """
    solver = cfg.SOLVER
    _check_positive(solver, "EPOCHS", "WARMUP_EPOCHS", "COOLDOWN_EPOCHS")
    if not solver.EPOCHS:
        return cfg
    steps = images // images_per_step(cfg)
    if not steps:
        raise ConfigError(
            f"SOLVER.EPOCHS: {images} training images make no step of {images_per_step(cfg)} images: lower "
            "SOLVER.IMS_PER_BATCH or SOLVER.ACCUMULATE_STEPS"
        )
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = (solver.EPOCHS + solver.COOLDOWN_EPOCHS) * steps
    cfg.SOLVER.WARMUP_ITERS = solver.WARMUP_EPOCHS * steps
    cfg.SOLVER.COOLDOWN_ITERS = solver.COOLDOWN_EPOCHS * steps
    if frozen:
        cfg.freeze()
    _logger.info(
        "%d epochs of %d images and %d at the lowest rate: %d iterations, %d in an epoch",
        *(solver.EPOCHS, images, solver.COOLDOWN_EPOCHS, cfg.SOLVER.MAX_ITER, steps),
    )
    return cfg


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """Scale BASE_LR from LR_REFERENCE_BATCH to the number of images of a step, in proportion.

    The rule is that of Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (arXiv 1706.02677),
    section 2.1.

    Returns:
        A copy of `cfg` that is not scaled when it is given again; `cfg` itself if there is nothing to scale.

    Raises:
        ConfigError: LR_REFERENCE_BATCH is negative, or REFERENCE_WORLD_SIZE, which scales the rate too, is set as well.
    """
    images, reference = images_per_step(cfg), cfg.SOLVER.LR_REFERENCE_BATCH
    if reference < 0:
        raise ConfigError(f"SOLVER.LR_REFERENCE_BATCH is {reference}, expected a number of images, or 0 for no scaling")
    if reference and cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise ConfigError(
            "SOLVER.LR_REFERENCE_BATCH and SOLVER.REFERENCE_WORLD_SIZE both scale the learning rate: set one"
        )
    if reference in (0, images):
        return cfg
    frozen, rate = cfg.is_frozen(), cfg.SOLVER.BASE_LR
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.BASE_LR = rate * images / reference
    # End of a cosine schedule; other schedules are relative to BASE_LR.
    cfg.SOLVER.BASE_LR_END = cfg.SOLVER.BASE_LR_END * images / reference
    cfg.SOLVER.LR_REFERENCE_BATCH = images
    if frozen:
        cfg.freeze()
    _logger.info(
        "SOLVER.BASE_LR %g is for %d images per step; for %d it is %g", rate, reference, images, cfg.SOLVER.BASE_LR
    )
    return cfg


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    The backbone's rate is multiplied by `BACKBONE_MULTIPLIER`, and by `LAYER_DECAY` for each block that follows (Bao et
    al., "BEiT", ICLR 2022). The layers of a feature pyramid over it have a head's rate. Norms, batch norms
    among them, embeddings and relative position biases have their own weight decays (`WEIGHT_DECAY_NORM`,
    `WEIGHT_DECAY_BATCH_NORM`, `WEIGHT_DECAY_EMBED`, `WEIGHT_DECAY_RPB`), unless `WEIGHT_DECAY_EXEMPT` says which
    parameters have none.

    Raises:
        ConfigError: LAYER_DECAY is outside its range.
    """
    solver = cfg.SOLVER
    exempt = solver.WEIGHT_DECAY_EXEMPT
    if not 0 < solver.LAYER_DECAY <= 1:
        raise ConfigError(f"SOLVER.LAYER_DECAY is {solver.LAYER_DECAY}, expected more than 0 and at most 1")
    following = _blocks_that_follow([name for name, _ in model.named_parameters()])
    pyramid = {
        parameter
        for module in model.modules()
        if isinstance(module, FPN)
        for part in (*module.lateral_convs, *module.output_convs)
        for parameter in part.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            in_backbone = module_name.removeprefix("module.").startswith("backbone") and parameter not in pyramid
            rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if in_backbone else 1.0)
            full_name = f"{module_name}.{name}" if module_name else name
            rate *= solver.LAYER_DECAY ** following[full_name] if in_backbone else 1.0
            decay = solver.WEIGHT_DECAY
            if exempt:
                decay = 0.0 if _is_exempt(full_name, parameter, exempt) else decay
            elif isinstance(module, _BATCH_NORMS) and solver.WEIGHT_DECAY_BATCH_NORM is not None:
                decay = solver.WEIGHT_DECAY_BATCH_NORM
            elif isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                decay = solver.WEIGHT_DECAY_EMBED
            elif name == "rpb" and solver.WEIGHT_DECAY_RPB is not None:
                decay = solver.WEIGHT_DECAY_RPB
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _is_exempt(name: str, parameter: nn.Parameter, exempt: Sequence[str]) -> bool:
    return any(
        parameter.ndim <= 1 if entry == _ONE_DIMENSIONAL else fnmatch.fnmatchcase(name, entry) for entry in exempt
    )


def _blocks_that_follow(names: Sequence[str]) -> dict[str, int]:
    """Number of blocks from each parameter of a backbone to its end, its own included; one more for the tokenizer.

    Names are in the order of the forward pass. The step between two levels belongs to the block before it; everything
    that is neither in a block nor in the tokenizer has 0.
    """
    blocks: dict[str, int] = {}
    place: tuple[str, str | None] | None = None
    count = 0
    for name in names:
        if found := _BLOCK.search(name):
            level, block = found[1], found[2]
            is_step = block is None and place is not None and place[0] == level and place[1] is not None
            if not is_step and place != (level, block):
                place, count = (level, block), count + 1
            blocks[name] = count
        elif ".patch_embed." in f".{name}":
            blocks[name] = 0
    return {name: count + 1 - blocks[name] if name in blocks else 0 for name in names}
