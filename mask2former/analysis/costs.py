"""Parameters and multiply-adds of a network, by part and by kind of operation.

Operations are counted as in the papers, that is as fvcore does: a multiplication with an addition is one. Convolutions
and matrix products are counted exactly, a norm as 5 per value (a batch norm in evaluation as 2), a bilinear resize or
sample as 4 and a nearest one or an average as 1. Activations, softmax and additions are not counted. Neighborhood
attention is counted as in the published code: query times key and probability times value, and 1 per score for the
relative position bias. Deformable attention costs its bilinear samples.

Shapes are enough for this; on the meta device nothing is computed.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .networks import Network

Shape = Sequence[int]

_NORM, _BATCH_NORM, _BILINEAR = 5, 2, 4
# Parts of models by the names of their modules; the first pattern that is found counts. Numbers of levels are from 0.
_PARTS = (
    (r"\bpatch_embed\b", "tokenizer"),
    (r"\b(?:levels|layers)\.(\d+)\.blocks\.\d+\.attn\b", "level {} attention"),
    (r"\b(?:levels|layers)\.(\d+)\.blocks\.\d+\.mlp\b", "level {} MLP"),
    (r"\b(?:levels|layers)\.(\d+)\.blocks\b", "level {} norms"),
    (r"\b(?:levels|layers)\.(\d+)\.downsample\b", "level {} downsampler"),
    (r"^(?:backbone\.)?layers\.\d+\.attn\b", "blocks attention"),
    (r"^(?:backbone\.)?layers\.\d+\.mlp\b", "blocks MLP"),
    (r"^(?:backbone\.)?layers\b", "blocks norms"),
    (r"^(?:backbone\.)?(?:bottom_up\.)?norm\d?\b", "output norms"),
    (r"^backbone(?:$|\.fpn_)", "feature pyramid"),
    (r"^proposal_generator\b", "region proposals"),
    (r"^roi_heads\.(?:box_head|box_predictor)\b", "box heads"),
    (r"^roi_heads\.mask_head\b", "mask heads"),
    (r"^sem_seg_head\.pixel_decoder\b.*\.self_attn\b", "pixel decoder attention"),
    (r"^sem_seg_head\.pixel_decoder\b", "pixel decoder"),
    (r"^sem_seg_head\.predictor\b.*_attention_layers\b", "transformer decoder attention"),
    (r"^sem_seg_head\.predictor\b", "transformer decoder"),
    (r"^sem_seg_head\b", "segmentation head"),
    (r"^auxiliary_head\b", "auxiliary head (training)"),
    (r"^head\b", "class head"),
)
# The network itself, outside its modules.
_OTHER = "final resize"


@dataclass(frozen=True)
class Cost:
    """Cost of a part.

    Attributes:
        part: Name of the part.
        parameters: Number of parameters.
        multiply_adds: Number of multiply-adds for one image.
    """

    part: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Costs:
    """Costs of a network for one image.

    Attributes:
        size: Height and width of the image.
        parts: Costs of the parts, in the order of the model.
        operations: Numbers of multiply-adds by kind of operation, the largest first.
    """

    size: tuple[int, int]
    parts: tuple[Cost, ...]
    operations: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(cost.parameters for cost in self.parts)

    @property
    def multiply_adds(self) -> int:
        """Number of all multiply-adds."""
        return sum(cost.multiply_adds for cost in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Contents of a JSON file."""
        return {
            "size": list(self.size),
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "parts": [asdict(cost) for cost in self.parts],
            "operations": dict(self.operations),
        }

    def table(self) -> str:
        """Two tables: parts, and kinds of operations."""
        total = max(1, self.multiply_adds)
        rows: list[tuple[str, ...]] = [
            (cost.part, f"{cost.parameters:,}", _giga(cost.multiply_adds), f"{cost.multiply_adds / total:.1%}")
            for cost in self.parts
        ]
        rows.append(("total", f"{self.parameters:,}", _giga(self.multiply_adds), ""))
        parts = tabulate(
            rows,
            headers=("part", "parameters", "multiply-adds", "share"),
            colalign=("left", *["right"] * 3),
            disable_numparse=True,
        )
        kinds = tabulate(
            [(kind, _giga(count), f"{count / total:.1%}") for kind, count in self.operations.items()],
            headers=("operation", "multiply-adds", "share"),
            colalign=("left", "right", "right"),
            disable_numparse=True,
        )
        return f"One image of {self.size[0]} x {self.size[1]} pixels\n\n{parts}\n\n{kinds}"


def count_costs(network: Network, size: tuple[int, int]) -> Costs:
    """Count the parameters of a network and its multiply-adds for one image.

    Args:
        network: Network on the meta device in evaluation mode; see `build_network`.
        size: Height and width of the image.
    """
    operations = _operations()
    formulas = {operator: formula for operator, (_, formula) in operations.items()}
    # Formulas are looked up by operator; its variant must be known as well, or it is taken apart instead.
    formulas |= {operator.default: formula for operator, formula in formulas.items()}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # The counter takes a parameter that is looked at without gradients for one of a graph.
    frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with torch.no_grad(), counter:
        torch.func.functional_call(network, frozen, (torch.empty((1, 3, *size), device="meta"),))
    counts = counter.get_flop_counts()
    parameters, multiply_adds = Counter[tuple[int, int, str]](), Counter[tuple[int, int, str]]()
    kinds = Counter[str]()
    for name, parameter in network.model.named_parameters():
        parameters[_part(name)] += parameter.numel()
    for name, count in _own_counts({path: sum(by.values()) for path, by in counts.items()}).items():
        multiply_adds[_part(name)] += count
    for operator, count in counts.get("Global", {}).items():
        kinds[operations[operator][0]] += count
    parts = (Cost(part[-1], parameters[part], multiply_adds[part]) for part in sorted({**parameters, **multiply_adds}))
    costs = tuple(cost for cost in parts if cost.parameters or cost.multiply_adds)
    return Costs(size, costs, dict(kinds.most_common()))


def printed(count: int, like: str) -> str:
    """A count rounded as a number of the papers, such as 2.7G or 20M.

    Args:
        count: Number of parameters or of multiply-adds.
        like: Printed number that gives the unit and the digits.
    """
    unit = {"M": 1e6, "G": 1e9}[like[-1]]
    return f"{count / unit:.{len(like[:-1].partition('.')[2])}f}{like[-1]}"


def _giga(count: int) -> str:
    return f"{count / 1e9:.3f}G"


def _part(name: str) -> tuple[int, int, str]:
    """Part that a module or parameter belongs to, after two numbers that sort the parts; levels stay together."""
    for index, (pattern, part) in enumerate(_PARTS):
        if match := re.search(pattern, name):
            level = int(match[1]) if match.groups() else None
            return (index, 0, part) if level is None else (1, len(_PARTS) * level + index, part.format(level))
    return len(_PARTS), 0, _OTHER


def _own_counts(totals: Mapping[str, int]) -> Counter[str]:
    """Counts of modules without those of their submodules, by the names of the modules in the model."""
    own = Counter[str]()
    prefix = f"{Network.__name__}.model"
    for path, count in totals.items():
        if path == "Global":
            continue
        own[path] += count
        parent = path.rpartition(".")[0]
        # Containers such as ModuleList are not called and have no counts of their own.
        while parent and parent not in totals:
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= count
    return Counter({path.removeprefix(prefix).removeprefix("."): count for path, count in own.items()})


def _per_input(factor: int) -> Callable[..., int]:
    return lambda shape, *_, **__: factor * math.prod(shape)


def _per_output(factor: int) -> Callable[..., int]:
    return lambda *_, out_shape, **__: factor * math.prod(out_shape)


def _neighborhood_attention(
    query: Shape, _key: Shape, _value: Shape, rpb: Shape | None, kernel_size: int, *_: Any, **__: Any
) -> int:
    scores = math.prod(query[:-1]) * kernel_size**2
    return scores * (2 * query[-1] + (rpb is not None))


def _known(operator: Any) -> Callable[..., int]:
    """PyTorch's formula of an operator in multiply-adds; PyTorch counts multiplications and additions."""
    return lambda *args, out_shape, **kwargs: flop_registry[operator](*args, out_val=out_shape, **kwargs) // 2


def _operations() -> dict[Any, tuple[str, Callable[..., int]]]:
    """Kinds and formulas of operators; formulas get shapes in place of tensors."""
    exact = {
        "linear layers": ("mm", "addmm"),
        "matrix products": ("bmm", "baddbmm"),
        "convolutions": ("convolution",),
    }
    weighted = {
        "norms": {
            "native_layer_norm": _per_input(_NORM),
            "native_group_norm": _per_input(_NORM),
            "native_batch_norm": _per_input(_BATCH_NORM),
        },
        "resizing": {"upsample_bilinear2d": _per_output(_BILINEAR), "upsample_nearest2d": _per_output(1)},
        "pooling": {"_adaptive_avg_pool2d": _per_input(1)},
        "deformable attention": {"grid_sampler_2d": _per_output(_BILINEAR)},
    }
    aten = torch.ops.aten
    operations = {getattr(aten, name): (kind, _known(getattr(aten, name))) for kind in exact for name in exact[kind]}
    operations |= {getattr(aten, n): (kind, formula) for kind in weighted for n, formula in weighted[kind].items()}
    # The operator of dinat_backbone, if a network of this process has it.
    if (attention := getattr(torch.ops.dinat_backbone, "neighborhood_attention_2d", None)) is not None:
        operations[attention] = ("neighborhood attention", _neighborhood_attention)
    return operations
