"""Multi-scale deformable attention as sums of table rows, for CPUs: plain PyTorch, forward and backward.

A sample is the weighted sum of the four cells around it, so the output of a query for a head is one weighted sum of
4 L P rows of a table of all cells, which `embedding_bag` computes without copying the rows. In the backward pass, the
gradients of the weights are the products of these rows with the gradient of the output (`sampled_addmm` on the pattern
of the table rows that are read). The gradient of a cell is a weighted sum of rows of the gradient of the output, with
the samples sorted by their top left cell, so that additions have a fixed order and results are reproducible.

Shapes:
    B: images; S: positions of all levels together; n: heads; D: channels of a head; L: levels; P: points; T: queries;
    R: rows of the table
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Sequence[tuple[int, int]]
Forward = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Shapes, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

# Cells of zeros around each level in the table; two, because all four cells of a sample can lie outside the map.
_MARGIN = 2
# The cells around a sample, as steps (down, right) from the top left one, in the order of weights and indices.
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
# Queries are processed in chunks of about this many samples per thread, so that intermediate results stay in caches.
SAMPLES_AT_ONCE = 32768


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


class Samples(NamedTuple):
    """Places of samples: table row of the top left cell, and fractions of a cell from there; all [T, n, L, P]."""

    row: Tensor
    x: Tensor
    y: Tensor

    def corner_weights(self, weights: Tensor, out: Sequence[Tensor]) -> None:
        """Write the bilinear weights of the four cells times `weights` [T, n, L, P], in the order of `_CORNERS`."""
        top_left, right, below, below_right = out
        torch.mul(weights, self.y, out=below)
        torch.mul(below, self.x, out=below_right)
        torch.sub(weights, below, out=top_left)
        torch.sub(below, below_right, out=below)
        torch.mul(weights, self.x, out=right).sub_(below_right)
        top_left.sub_(right)


class Table:
    """The cells of all levels of an image, each level with a margin of zeros: one row [D] per cell and head."""

    def __init__(self, spatial_shapes: Shapes, heads: int, points: int, like: Tensor) -> None:
        self.shapes = [(int(height), int(width)) for height, width in spatial_shapes]
        self.heads = heads
        sizes = [(height + 2 * _MARGIN) * (width + 2 * _MARGIN) for height, width in self.shapes]
        self.starts = [sum(sizes[:level]) for level in range(len(sizes))]
        self.rows = sum(sizes) * heads

        def per_sample(values: Sequence[int], dtype: torch.dtype) -> Tensor:
            """Expand one number per level to [n, L, P]; broadcasting over inner dimensions is slow."""
            numbers = torch.tensor(values, dtype=dtype, device=like.device)
            return numbers[None, :, None].expand(heads, -1, points).contiguous()

        heights, widths = ([shape[axis] for shape in self.shapes] for axis in (0, 1))
        self.height, self.width = per_sample(heights, like.dtype), per_sample(widths, like.dtype)
        self.last_y, self.last_x = per_sample(heights, torch.int32), per_sample(widths, torch.int32)
        pitches = [(width + 2 * _MARGIN) * heads for width in widths]
        self.pitch = per_sample(pitches, torch.int32)
        firsts = [start * heads + _MARGIN * (pitch + heads) for start, pitch in zip(self.starts, pitches, strict=True)]
        head = torch.arange(heads, dtype=torch.int32, device=like.device)
        self.origin = per_sample(firsts, torch.int32) + head[:, None, None]

    def fill(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Copy `value` [S, n, D] into a new table [R, D]."""
        table = value.new_zeros((self.rows, value.shape[2]), dtype=dtype)
        for level, inside in zip(self._levels(value), self._inside(table, 0, 0), strict=True):
            inside.copy_(level)
        return table

    def add_back(self, table: Tensor, corner: tuple[int, int], value: Tensor) -> None:
        """Add to `value` [S, n, D] the rows of a table [R, D] that belong to samples with each cell at a corner."""
        for level, inside in zip(self._levels(value), self._inside(table, *corner), strict=True):
            level.add_(inside)

    def locate(self, locations: Tensor) -> Samples:
        """Find the cells around `locations` [T, n, L, P, 2]."""
        column, x = _split(locations[..., 0], self.width, self.last_x)
        row, y = _split(locations[..., 1], self.height, self.last_y)
        first = row.mul_(self.pitch).add_(column, alpha=self.heads).add_(self.origin)
        return Samples(first, x, y)

    def corner_rows(self, first: Tensor) -> Tensor:
        """Rows of the four cells around samples, [T n, 4 L P], from the rows of the top left cells [T, n, L, P]."""
        rows = first.new_empty((*first.shape[:2], len(_CORNERS), *first.shape[2:]))
        rows[:, :, 0] = first
        torch.add(first, self.heads, out=rows[:, :, 1])
        below = torch.add(first, self.pitch, out=rows[:, :, 2])
        torch.add(below, self.heads, out=rows[:, :, 3])
        return rows.view(first.shape[0] * self.heads, -1)

    def _levels(self, value: Tensor) -> list[Tensor]:
        """Maps [H, W, n, D] of the levels of [S, n, D], as views."""
        parts = value.split([height * width for height, width in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _inside(self, table: Tensor, down: int, right: int) -> Iterator[Tensor]:
        """Yield views [H, W, n, D] of a table [R, D]: the levels without margins, moved up and left by some cells."""
        for (height, width), start in zip(self.shapes, self.starts, strict=True):
            padded = (height + 2 * _MARGIN, width + 2 * _MARGIN)
            level = table.unflatten(0, (-1, self.heads))[start : start + padded[0] * padded[1]].unflatten(0, padded)
            yield level[_MARGIN - down :, _MARGIN - right :][:height, :width]


def why_not(value: Tensor) -> str | None:
    """Return the reason why this backend can't serve a call with this `value`, or None if it can."""
    return None if value.device.type == "cpu" else f"it is for the CPU, and value is on {value.device}"


def _forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    dtype = computing_dtype(value)
    locations, weights = locations.to(dtype), weights.to(dtype)
    table = Table(shapes, value.shape[2], locations.shape[4], locations)
    output = value.new_empty((*locations.shape[:3], value.shape[3]))
    for image in range(value.shape[0]):
        rows = table.fill(value[image], dtype)
        for part in _chunks(locations[image]):
            samples = table.locate(locations[image, part])
            index = table.corner_rows(samples.row)
            factors = weights.new_empty(index.shape).view(*samples.row.shape[:2], len(_CORNERS), *weights.shape[3:])
            samples.corner_weights(weights[image, part], factors.unbind(2))
            bags = F.embedding_bag(index, rows, mode="sum", per_sample_weights=factors.view(index.shape))
            output[image, part] = bags.view(output[image, part].shape)
    return output.flatten(2)


def _backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = computing_dtype(value)
    exact_locations, exact_weights = locations.to(dtype), weights.to(dtype)
    gradients = gradient.to(dtype).unflatten(2, value.shape[2:]).contiguous()  # [B, T, n, D]
    table = Table(shapes, value.shape[2], locations.shape[4], exact_locations)
    of_locations, of_weights = torch.empty_like(exact_locations), torch.empty_like(exact_weights)
    for image in range(value.shape[0]):
        rows = table.fill(value[image], dtype)
        for part in _chunks(locations[image]):
            samples = table.locate(exact_locations[image, part])
            products = _products(rows, table.corner_rows(samples.row), gradients[image, part].flatten(0, 1))
            _sample_gradients(
                samples,
                products.view(*samples.row.shape[:2], len(_CORNERS), *weights.shape[3:]),
                exact_weights[image, part],
                (table.width, table.height),
                (of_locations[image, part], of_weights[image, part]),
            )
    of_value = value_gradient(gradients, shapes, exact_locations, exact_weights)
    return of_value.to(value.dtype), of_locations.to(locations.dtype), of_weights.to(weights.dtype)


forward = make_operator("ms_deform_attn_gather", _forward, _backward)


def value_gradient(gradient: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the gradient of `value` [B, S, n, D] from that of the output, [B, T, n, D], without atomic additions.

    It runs on any device. For each level, samples are sorted by their top left cell; then, for each corner, every cell
    sums weighted rows of `gradient`.
    """
    batch, _, heads, channels = gradient.shape
    sizes = [height * width for height, width in shapes]
    of_value = gradient.new_zeros((batch, sum(sizes), heads, channels))
    for level, part in enumerate(of_value.split(sizes, dim=1)):
        table = Table(shapes[level : level + 1], heads, locations.shape[4], locations)
        for image in range(batch):
            samples = table.locate(locations[image, :, :, level : level + 1])
            _add_samples(table, samples, weights[image, :, :, level : level + 1], gradient[image], part[image])
    return of_value


def _add_samples(table: Table, samples: Samples, weights: Tensor, gradient: Tensor, of_value: Tensor) -> None:
    """Add to `of_value` [S, n, D] the weighted rows of `gradient` [T, n, D] of all samples around a cell."""
    first, order = samples.row.flatten().sort(stable=True)
    counts = torch.bincount(first, minlength=table.rows)
    starts = (counts.cumsum(0) - counts).int()
    sorted_samples = Samples(first, *(x.flatten().index_select(0, order) for x in (samples.x, samples.y)))
    factors = weights.new_empty((len(_CORNERS), len(order)))
    sorted_samples.corner_weights(weights.flatten().index_select(0, order), factors.unbind(0))
    rows_of_samples = torch.div(order, weights.shape[2] * weights.shape[3], rounding_mode="floor").int()
    for corner, factor in zip(_CORNERS, factors, strict=True):
        sums = F.embedding_bag(rows_of_samples, gradient.flatten(0, 1), starts, mode="sum", per_sample_weights=factor)
        table.add_back(sums, corner, of_value)


def _split(coordinate: Tensor, size: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Split a coordinate in units of a side into a cell of the map or its margin and the fraction of a cell from it."""
    position = torch.addcmul(coordinate.new_tensor(-0.5), coordinate, size)
    cell = position.floor()
    return cell.int().clamp_(min=-_MARGIN).minimum(last), position.sub_(cell)


def _products(table: Tensor, index: Tensor, gradient: Tensor) -> Tensor:
    """Dot products [N, K] of each row of `gradient` [N, D] with rows `index` [N, K] of `table` [R, D]."""
    count = index.numel()
    ends = torch.arange(0, count + 1, index.shape[1], dtype=index.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        # Columns are neither sorted nor distinct; sampled products, which go entry by entry, need neither.
        pattern = torch.sparse_csr_tensor(
            ends, index.view(-1), table.new_zeros(count), (len(index), len(table)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, gradient, table.t(), beta=0.0).values().view(index.shape)


def _sample_gradients(
    samples: Samples,
    products: Tensor,
    weights: Tensor,
    size: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor],
) -> None:
    """Write the gradients of locations [T, n, L, P, 2] and weights [T, n, L, P] into `out`.

    `products` [T, n, 4, L, P] are the products of the four cells with the gradient of the output. Bilinear
    interpolation between them gives the gradient of a weight, and its slopes give the gradients of the location.
    """
    top_left, top_right, left, right = products.unbind(2)
    top, bottom = torch.lerp(top_left, top_right, samples.x), torch.lerp(left, right, samples.x)
    of_locations, of_weights = out
    torch.lerp(top, bottom, samples.y, out=of_weights)
    slope_x = torch.lerp(top_right - top_left, right - left, samples.y)
    of_locations[..., 0] = slope_x.mul_(weights).mul_(size[0])
    of_locations[..., 1] = (bottom - top).mul_(weights).mul_(size[1])


def _chunks(locations: Tensor) -> Iterator[slice]:
    """Yield ranges of the queries of `locations` [T, n, L, P, 2]."""
    at_once = max(1, SAMPLES_AT_ONCE * torch.get_num_threads() // max(1, locations[:1, ..., 0].numel()))
    for start in range(0, len(locations), at_once):
        yield slice(start, start + at_once)
