"""The definition of neighborhood attention: its arguments, its windows, a direct computation that gathers all keys.

`make_operator` registers other computations of it as PyTorch operators.

Shapes:
    B: images; H, W: height and width of the map; n: heads; D: channels of a head; k: kernel size
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Call(NamedTuple):
    """Arguments of one call, after `neighborhood_attention_2d`, which describes them, has checked them."""

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    kernel_size: int
    dilation: int
    scale: float
    dropout_p: float = 0.0


def why_no_dropout(call: Call) -> str | None:
    """Return the reason why all other backends refuse a call with attention dropout; None for calls without."""
    return "only the backend 'reference' supports attention dropout" if call.dropout_p > 0 else None


def window_start(coordinate: Tensor, length: int | Tensor, kernel_size: int) -> Tensor:
    """First key of each query along one axis.

    Positions i of an axis fall into `dilation` residue groups g = i mod dilation; within a group of n positions, the
    query at coordinate x attends to the k keys s .. s + k - 1 with s = clamp(x - k // 2, 0, n - k) (Hassani and Shi,
    "Dilated Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1).

    Args:
        coordinate: Coordinates of the queries in their groups.
        length: Number of positions of the groups.
        kernel_size: Keys per query along the axis.
    """
    return torch.minimum((coordinate - kernel_size // 2).clamp(min=0), torch.as_tensor(length - kernel_size))


def bias_index(query: Tensor, key: Tensor, length: int | Tensor, kernel_size: int) -> Tensor:
    """Rows (or columns) of the bias table for pairs of a query and a key, given by coordinates in their group.

    The index is y - x + k - 1 inside the window of a query, and the extra index 2k - 1 ("masked") outside.
    """
    start = window_start(query, length, kernel_size)
    inside = (key >= start) & (key < start + kernel_size)
    # Queries beyond the end of a group can give negative indices; their results are not used.
    return torch.where(inside, (key - query + kernel_size - 1).clamp(min=0), 2 * kernel_size - 1)


def forward(call: Call) -> Tensor:
    """Compute the attention of [B, H, W, n, D] tensors; memory grows with H * W * k ** 2.

    Probabilities are dropped as in `F.dropout`.
    """
    rows, row_bias = neighbors(call.query.shape[1], call.kernel_size, call.dilation)
    columns, column_bias = neighbors(call.query.shape[2], call.kernel_size, call.dilation)
    index = (slice(None), rows[:, None, :, None], columns[None, :, None, :])
    scores = torch.einsum("bhwnd,bhwyxnd->bhwnyx", call.query, call.key[index]) * call.scale
    if call.rpb is not None:
        bias = call.rpb.to(scores.dtype)[:, row_bias[:, None, :, None], column_bias[None, :, None, :]]
        scores = scores + bias.permute(1, 2, 0, 3, 4)
    probabilities = scores.flatten(-2).softmax(-1).view_as(scores)
    probabilities = F.dropout(probabilities, call.dropout_p)
    return torch.einsum("bhwnyx,bhwyxnd->bhwnd", probabilities, call.value[index])


def neighbors(size: int, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Positions of the keys of each query along one axis, and their entries in the bias table: [size, k] each."""
    position = torch.arange(size)
    group, coordinate = position % dilation, position // dilation
    length = (size - group + dilation - 1) // dilation
    first = window_start(coordinate, length, kernel_size)
    keys = first[:, None] + torch.arange(kernel_size)
    return keys * dilation + group[:, None], keys - coordinate[:, None] + kernel_size - 1


def make_operator(
    name: str,
    forward: Callable[[Call, bool], tuple[Tensor, Tensor]],
    backward: Callable[[Call, Tensor | None, Tensor, Tensor, bool], tuple[Tensor, ...]],
    *,
    empty_sums: Callable[[Tensor, bool], Tensor],
    keep_output: bool,
    device_types: str | None = None,
) -> Callable[[Call], Tensor]:
    """Register `forward` as the operator dinat_backbone::`name`, with `backward` as its derivative.

    torch.compile keeps custom operators whole, without graph breaks.

    Args:
        name: Name of the operator; the name of its derivative has the suffix `_backward`.
        forward: Function from a call, and whether a backward pass may follow, to the output and the sums of
            exponentials that the backward pass needs.
        backward: Function from a call, the output (None without `keep_output`), the sums, the gradient of the output,
            and whether the gradient of `rpb` is needed, to the gradients of query, key, value and `rpb` (empty if it is
            not needed).
        empty_sums: Function from the query, and whether a backward pass may follow, to memory for the sums.
        keep_output: Whether `backward` needs the output.
        device_types: Type of device that the functions compute on; None means any.

    Returns:
        Differentiable function of a call.
    """
    tensors, settings = (
        "Tensor query, Tensor key, Tensor value, Tensor? rpb",
        "int kernel_size, int dilation, float scale",
    )

    def flat_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return forward(Call(*arguments[:7]), arguments[7])

    def flat_backward(*arguments: Any) -> tuple[Tensor, ...]:
        return backward(Call(*arguments[:4], *arguments[7:10]), *arguments[4:7], arguments[10])

    operator = torch.library.custom_op(
        f"dinat_backbone::{name}",
        flat_forward,
        mutates_args=(),
        device_types=device_types,
        schema=f"({tensors}, {settings}, bool keep) -> (Tensor, Tensor)",
    )
    derivative = torch.library.custom_op(
        f"dinat_backbone::{name}_backward",
        flat_backward,
        mutates_args=(),
        device_types=device_types,
        schema=f"({tensors}, Tensor? output, Tensor sums, Tensor gradient, {settings}, bool bias_needed)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
    )

    @operator.register_fake
    def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(query, memory_format=torch.contiguous_format), empty_sums(query, rest[-1])

    @derivative.register_fake
    def _(query: Tensor, _key: Tensor, _value: Tensor, rpb: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        return empty_gradients(query, rpb if rest[-1] else None)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:4], output[0] if keep_output else None, output[1])
        ctx.settings = inputs[4:7]
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, gradient: Tensor, _gradient_of_sums: Tensor | None) -> tuple[Tensor | None, ...]:
        bias_needed = ctx.needs_input_grad[3]
        *gradients, of_rpb = derivative(*ctx.saved_tensors, gradient, *ctx.settings, bias_needed)
        return *gradients, of_rpb if bias_needed else None, None, None, None, None

    operator.register_autograd(differentiate, setup_context=save)
    return lambda call: operator(*call[:7], torch.is_grad_enabled())[0]


def empty_gradients(query: Tensor, rpb: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the gradients of query, key, value and `rpb` (empty for None)."""
    of_query, of_key, of_value = (torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))
    return of_query, of_key, of_value, query.new_empty(0) if rpb is None else torch.empty_like(rpb)
