"""Names of weights in the transformers library and in the authors' checkpoints, as one table for both directions.

A table is a sequence of rules. In a template, `*` stands for a number and `?` for any last part of a name; both sides
of a rule have the same placeholders in the same order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dinat_common.weights import CheckpointError, StateDict


@dataclass(frozen=True)
class Rule:
    """Weights that are equal in both layouts.

    Several weights on one side are one weight on the other side.

    Attributes:
        ours: Templates of the authors' names.
        theirs: Templates of transformers' names.
        stacked: Whether several weights are stacked along a new first dimension instead of joined along the first.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    stacked: bool = False

    def prefixed(self, ours: str, theirs: str) -> "Rule":
        """The rule of a part of a larger model."""
        return Rule(tuple(ours + x for x in self.ours), tuple(theirs + x for x in self.theirs), self.stacked)


def pairs(*names: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules of weights that only have another name."""
    return tuple(Rule((ours,), (theirs,)) for ours, theirs in names)


class NameTable:
    """Renames weights between two layouts; values do not change, and tables invert each other exactly."""

    def __init__(self, rules: Sequence[Rule], model: str) -> None:
        """Create a table.

        Args:
            rules: Rules for all weights.
            model: Name of the model in messages.
        """
        self.rules = tuple(rules)
        self.model = model

    def to_transformers(self, state: StateDict) -> StateDict:
        """Rename weights with the authors' names.

        Raises:
            CheckpointError: A name is unknown, or a part of a weight is missing.
        """
        sides = [(rule.ours, rule.theirs, rule.stacked) for rule in self.rules]
        return _convert(state, sides, f"not a name in the authors' {self.model}")

    def from_transformers(self, state: StateDict) -> StateDict:
        """Rename weights with transformers' names.

        Raises:
            CheckpointError: A name is unknown, or a part of a weight is missing.
        """
        sides = [(rule.theirs, rule.ours, rule.stacked) for rule in self.rules]
        return _convert(state, sides, f"not a name in transformers' {self.model}")


def _convert(
    state: StateDict, sides: Sequence[tuple[tuple[str, ...], tuple[str, ...], bool]], unknown: str
) -> StateDict:
    patterns = [
        (_pattern(source), rule, part)
        for rule, (sources, _, _) in enumerate(sides)
        for part, source in enumerate(sources)
    ]
    found: dict[tuple[int, tuple[str, ...]], dict[int, torch.Tensor]] = {}
    for name, value in state.items():
        for pattern, rule, part in patterns:
            if match := pattern.fullmatch(name):
                found.setdefault((rule, match.groups()), {})[part] = value
                break
        else:
            raise CheckpointError(f"{name}: {unknown}")
    renamed: StateDict = {}
    for (rule, places), parts in found.items():
        sources, targets, stacked = sides[rule]
        names = [_fill(target, places) for target in targets]
        if len(parts) < len(sources):
            labels = _differing_parts(sources)
            expected = f"{', '.join(labels[:-1])} and {labels[-1]}"
            only = ", ".join(labels[part] for part in sorted(parts))
            raise CheckpointError(f"{names[0]}: expected {expected}, found only {only}")
        values = [parts[part] for part in range(len(sources))]
        renamed.update(zip(names, _regroup(values, len(names), stacked), strict=True))
    return renamed


def _regroup(values: Sequence[torch.Tensor], count: int, stacked: bool) -> Sequence[torch.Tensor]:
    """Split one weight into `count`, or make one of several."""
    if len(values) == count:
        return values
    if count == 1:
        return [torch.stack(list(values)) if stacked else torch.cat(list(values))]
    return values[0].unbind(0) if stacked else values[0].chunk(count)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)").replace(r"\?", r"(\w+)"))


def _fill(template: str, places: Sequence[str]) -> str:
    remaining = iter(places)
    return re.sub(r"[*?]", lambda _: next(remaining), template)


def _differing_parts(names: Sequence[str]) -> list[str]:
    """The parts in which names differ, such as query, key and value."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return list(next(column for column in columns if len(set(column)) > 1))


_BLOCK, _LAYER = "levels.*.blocks.*.", "encoder.levels.*.layers.*."

# NAT and DiNAT without the head: the authors' backbones and classifiers, transformers' models and backbones. The norms
# of a backbone's outputs are numbered from 0 in the authors' detectors, from 1 in transformers.
DINAT_RULES = (
    *pairs(
        ("patch_embed.proj.*.?", "embeddings.patch_embeddings.projection.*.?"),
        ("patch_embed.norm.?", "embeddings.norm.?"),
        ("levels.*.downsample.reduction.?", "encoder.levels.*.downsample.reduction.?"),
        ("levels.*.downsample.norm.?", "encoder.levels.*.downsample.norm.?"),
        (_BLOCK + "norm1.?", _LAYER + "layernorm_before.?"),
        (_BLOCK + "norm2.?", _LAYER + "layernorm_after.?"),
        (_BLOCK + "attn.rpb", _LAYER + "attention.self.rpb"),
        (_BLOCK + "attn.proj.?", _LAYER + "attention.output.dense.?"),
        (_BLOCK + "mlp.fc1.?", _LAYER + "intermediate.dense.?"),
        (_BLOCK + "mlp.fc2.?", _LAYER + "output.dense.?"),
        *((f"norm{level}.?", f"hidden_states_norms.stage{level + 1}.?") for level in range(4)),
    ),
    Rule(
        (_BLOCK + "attn.qkv.?",),
        tuple(f"{_LAYER}attention.self.{part}.?" for part in ("query", "key", "value")),
    ),
    Rule((_BLOCK + "gamma1", _BLOCK + "gamma2"), (_LAYER + "layer_scale_parameters",), stacked=True),
)
DINAT_NAMES = NameTable((*DINAT_RULES, *pairs(("norm.?", "layernorm.?"), ("head.?", "classifier.?"))), "DiNAT")


def dinat_from_transformers(state: StateDict) -> StateDict:
    """Rename the weights of a NAT or DiNAT from the transformers library to its authors' names.

    Query, key and value are joined into one projection, and a pair of layer scales is split; values do not change.

    Args:
        state: Weights of a model, a classifier (with `dinat.` or `nat.` in front of most names) or a backbone.

    Raises:
        CheckpointError: A name is not one of transformers' DiNAT, or a projection is incomplete.
    """
    return DINAT_NAMES.from_transformers({re.sub(r"^(dinat|nat)\.", "", name): value for name, value in state.items()})
