"""Optimiser and learning-rate schedule of the published recipes."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

__all__ = ["build_lr_scheduler", "build_optimizer"]

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
# Any: the base class does not declare the settings that all of these take.
_OPTIMIZERS: dict[str, Any] = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build `SOLVER.OPTIMIZER` over the parameter groups of `model`, with gradient clipping as configured.

    `CLIP_GRADIENTS.CLIP_TYPE` "full_model" clips the norm of all gradients together (DETR); other types are
    Detectron2's, which clip each parameter.

    Raises:
        ValueError: an unknown optimiser.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in _OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}, expected one of {', '.join(_OPTIMIZERS)}")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    full_model = clip.ENABLED and clip.CLIP_TYPE == "full_model" and clip.CLIP_VALUE > 0
    kind: Any = _OPTIMIZERS[name] if full_model else maybe_add_gradient_clipping(cfg, _OPTIMIZERS[name])
    settings: dict[str, Any] = {"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}
    optimizer = kind(parameter_groups(cfg, model), lr=cfg.SOLVER.BASE_LR, **settings)
    if full_model:
        optimizer.register_step_pre_hook(_FullModelClipper(clip.CLIP_VALUE, clip.NORM_TYPE))
    return optimizer


class _FullModelClipper:
    """Scales all gradients down so that their common norm is at most `value`, before each step."""

    def __init__(self, value: float, norm_type: float) -> None:
        self.value = value
        self.norm_type = norm_type

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.value, self.norm_type)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    The backbone's rate is multiplied by `BACKBONE_MULTIPLIER`. Norms, embeddings and relative position biases have
    weight decays of their own (`WEIGHT_DECAY_NORM`, `WEIGHT_DECAY_EMBED`, `WEIGHT_DECAY_RPB`).
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            in_backbone = module_name.removeprefix("module.").startswith("backbone")
            rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if in_backbone else 1.0)
            groups.setdefault((rate, _weight_decay(solver, module, name)), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _weight_decay(solver: CfgNode, module: nn.Module, name: str) -> float:
    if isinstance(module, _NORMS):
        return solver.WEIGHT_DECAY_NORM
    if isinstance(module, nn.Embedding):
        return solver.WEIGHT_DECAY_EMBED
    if name == "rpb" and solver.WEIGHT_DECAY_RPB is not None:
        return solver.WEIGHT_DECAY_RPB
    return solver.WEIGHT_DECAY
