"""Deformable attention by `grid_sample`: plain PyTorch, for any device, exportable; and what all backends share.

Shapes:
    B: images; S: positions of all levels together; n: heads; D: channels of a head; L: levels; P: points; T: queries
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Sequence[tuple[int, int]]
Forward = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Shapes, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def forward(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum bilinear samples level by level; see `ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], *locations.shape[3:5]
    # With 16-bit inputs, `grid_sample` on the CPU has returned NaN for points inside the map (PyTorch 2.14).
    dtype = computing_dtype(value)
    grids = (2 * locations.to(dtype) - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B n, T, P, 2]
    sampled = []
    per_level = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    for (height, width), level, grid in zip(spatial_shapes, per_level, grids, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    factors = weights.to(dtype).permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * factors).sum(-1)  # [B n, D, T]
    return output.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def computing_dtype(value: Tensor) -> torch.dtype:
    """Type in which sums are computed: float64 for float64, float32 for all other types."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def make_operator(name: str, forward: Forward, backward: Backward) -> Forward:
    """Register `forward` as the operator mask2former::`name`, with `backward` as its derivative.

    torch.compile keeps custom operators whole, without graph breaks and without unrolling their loops.

    Args:
        name: Name of the operator; the name of its derivative has the suffix `_backward`.
        forward: Function from value [B, S, n, D], spatial shapes, locations [B, T, n, L, P, 2] and weights
            [B, T, n, L, P] to the output [B, T, n D].
        backward: Function from the gradient [B, T, n D] and the arguments of `forward` to the gradients of value,
            locations and weights.

    Returns:
        Differentiable form of `forward`.
    """

    def flat_forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        return forward(value, _pairs(sides), locations, weights)

    def flat_backward(
        gradient: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return backward(gradient, value, _pairs(sides), locations, weights)

    operator = torch.library.custom_op(f"mask2former::{name}", flat_forward, mutates_args=())
    derivative = torch.library.custom_op(f"mask2former::{name}_backward", flat_backward, mutates_args=())

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
    return lambda value, shapes, *rest: operator(value, [side for shape in shapes for side in shape], *rest)


def _pairs(sides: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sides[::2], sides[1::2], strict=True))
