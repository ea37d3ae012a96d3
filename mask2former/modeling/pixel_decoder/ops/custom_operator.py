"""Makes PyTorch operators of the forward and backward functions of a backend."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Sequence[int], Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Sequence[int], Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def make_operator(name: str, forward: Forward, backward: Backward) -> Forward:
    """Register `forward` as the operator mask2former::`name`, with `backward` as its derivative.

    Custom operators stay whole in what torch.compile makes of a model: no graph breaks, nothing unrolled.

    Args:
        name: of the operator; that of the derivative is the same with `_backward`.
        forward: maps value [B, S, n, D], the sides (height, width, height, ...) of the levels, locations
            [B, T, n, L, P, 2] and weights [B, T, n, L, P] to [B, T, n D].
        backward: maps the gradient [B, T, n D] and the inputs to the gradients of value, locations and weights.
    """
    operator = torch.library.custom_op(f"mask2former::{name}", forward, mutates_args=())
    derivative = torch.library.custom_op(f"mask2former::{name}_backward", backward, mutates_args=())

    @operator.register_fake
    def _(value: Tensor, _sides: Sequence[int], locations: Tensor, _weights: Tensor) -> Tensor:
        return value.new_empty((value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]))

    @derivative.register_fake
    def _(_gradient: Tensor, value: Tensor, _sides: Sequence[int], locations: Tensor, weights: Tensor) -> Any:
        return tuple(x.new_empty(x.shape) for x in (value, locations, weights))

    def save(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
        value, ctx.sides, locations, weights = inputs
        ctx.save_for_backward(value, locations, weights)

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        of_value, of_locations, of_weights = derivative(gradient, value, ctx.sides, locations, weights)
        return of_value, None, of_locations, of_weights

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def pairs(sides: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of each level from all sides in a row."""
    return list(zip(sides[::2], sides[1::2], strict=True))
