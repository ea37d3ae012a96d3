"""Resuming under other settings: the config decides, and the checkpoint gives what has a counterpart.

Optimiser state is taken over by parameter name. Learning rates and all other settings of the parameter groups come from
the config.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver.lr_scheduler import LRMultiplier
from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mask2former.config import flatten

# Schedules whose rate follows from the iteration alone: all those that a config can name.
_BY_ITERATION = (LRMultiplier, WarmupPolyLR)
_WIDEST = 60  # characters of a value in the table of differences
_PARTS_SHOWN = 5


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in the order in which `optimizer.state_dict()` numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names.get(parameter, f"parameter {index}") for index, parameter in enumerate(parameters)]


def fit_optimizer_state(
    optimizer: Optimizer,
    names: Sequence[str],
    saved: Mapping[str, Any] | None,
    saved_names: Sequence[str] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Build a state that `optimizer` can load from that of another optimiser over parameters of the same names.

    Args:
        optimizer: Optimiser that is to continue; it is not changed.
        names: Names of its parameters, see `parameter_names`.
        saved: State dict of the earlier optimiser; None if there is none.
        saved_names: Names of the earlier optimiser's parameters. If None, parameters correspond by their order,
            provided that the groups have the same sizes.

    Returns:
        State dict with the settings of the groups of `optimizer`, and sentences about what starts afresh.
    """
    fitted = optimizer.state_dict()
    if not saved or not saved.get("param_groups"):
        return fitted, ["the checkpoint has no optimiser state: the optimiser starts afresh"]
    if _kind(saved) != _kind(fitted):
        return fitted, ["the checkpoint is of another SOLVER.OPTIMIZER: the optimiser starts afresh"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if saved_names is None:
        in_order = zip(range(len(parameters)), parameters, strict=True)
        same_order = _sizes(saved) == _sizes(fitted) and all(
            _fits(saved["state"].get(index, {}), parameter) for index, parameter in in_order
        )
        if not same_order:
            return fitted, [
                "other parameter groups, and no parameter names in the checkpoint: the optimiser starts afresh"
            ]
        saved_names = names
    earlier = {name: saved["state"].get(index, {}) for index, name in enumerate(saved_names)}
    state: dict[int, Any] = {}
    afresh = []
    for index, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        if name not in earlier or not _fits(earlier[name], parameter):
            afresh.append(name)
        elif earlier[name]:
            state[index] = earlier[name]
    notes = []
    if afresh:
        notes.append(f"optimiser state starts afresh for {len(afresh)} of {len(names)} parameters ({_parts(afresh)})")
    if left := sorted(set(saved_names) - set(names)):
        notes.append(f"optimiser state of {len(left)} parameters that are not trained now is left out ({_parts(left)})")
    return {**fitted, "state": state}, notes


def set_iteration(scheduler: LRScheduler, iteration: int) -> list[float] | None:
    """Move a new schedule to an iteration.

    Args:
        scheduler: Schedule of a config.
        iteration: Number of finished iterations.

    Returns:
        Learning rates of the parameter groups for the next iteration; None if the schedule is of another kind, whose
        rates depend on those of earlier iterations. It is then left as it is.
    """
    if not isinstance(scheduler, _BY_ITERATION):
        return None
    scheduler.load_state_dict({"last_epoch": iteration})
    rates = [float(rate) for rate in scheduler.get_lr()]
    scheduler.load_state_dict({"_last_lr": rates})
    return rates


def config_differences(earlier: str, cfg: CfgNode) -> str:
    """Table of the keys whose values differ between a checkpoint's config and that of the run.

    Args:
        earlier: Config of the checkpoint as YAML, from `cfg.dump()`.
        cfg: Config of the run.

    Returns:
        Table with the columns key, checkpoint and now; empty if nothing differs.
    """
    before, now = (flatten(yaml.safe_load(text)) for text in (earlier, cfg.dump()))
    rows = [
        (key, _shown(before, key), _shown(now, key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    return (
        tabulate(rows, headers=("key", "checkpoint", "now"), tablefmt="simple", disable_numparse=True) if rows else ""
    )


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "(no such key)"
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _kind(state: Mapping[str, Any]) -> set[str]:
    """Names of the numbers that an optimiser is set by, which tell AdamW from SGD in every version of PyTorch."""
    numbers = state["param_groups"][0].items()
    return {
        key
        for key, value in numbers
        if isinstance(value, int | float | tuple) and not isinstance(value, bool) and key != "initial_lr"
    }


def _sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


def _fits(state: Mapping[str, Any], parameter: torch.Tensor) -> bool:
    """Whether all tensors of a parameter's state have its shape; scalars count steps."""
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    return all(tensor.ndim == 0 or tensor.shape == parameter.shape for tensor in tensors)


def _parts(names: Iterable[str]) -> str:
    """Modules of the first three levels that have these names, at most a few."""
    parts = list(dict.fromkeys(".".join(name.split(".")[:-1][:3]) or name for name in names))
    return ", ".join(parts[:_PARTS_SHOWN]) + (
        f" and {len(parts) - _PARTS_SHOWN} more" if len(parts) > _PARTS_SHOWN else ""
    )
