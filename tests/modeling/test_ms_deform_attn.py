"""Deformable attention against bilinear sampling written out point by point."""

import math

import torch

from mask2former.modeling.pixel_decoder.ops import MSDeformAttn, ms_deform_attn

SHAPES = [(3, 4), (5, 7)]


def bilinear(level: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Value of a map [H, W, C] at (x, y) in units of its sides, cell centres at half integers, zero outside."""
    height, width, channels = level.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = level.new_zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + level[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_equals_the_definition():
    batch, heads, channels, queries, points = 2, 3, 4, 5, 2
    total = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, total, heads, channels, dtype=torch.float64)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=torch.float64)
    got = ms_deform_attn(value, SHAPES, locations, weights)
    levels = [
        part.view(batch, height, width, heads, channels)
        for part, (height, width) in zip(value.split([h * w for h, w in SHAPES], dim=1), SHAPES, strict=True)
    ]
    expected = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for n in range(heads):
                for level, maps in enumerate(levels):
                    for p in range(points):
                        x, y = locations[b, q, n, level, p].tolist()
                        expected[b, q, n] += weights[b, q, n, level, p] * bilinear(maps[b, :, :, n], x, y)
    torch.testing.assert_close(got, expected.flatten(2))


def test_gradcheck():
    value = torch.randn(1, sum(h * w for h, w in SHAPES), 2, 3, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(1, 3, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn(x[0], SHAPES, *x[1:]), (value, locations, weights))


def test_offsets_start_on_a_ring():
    bias = MSDeformAttn(32, num_levels=2, num_heads=8, num_points=4).sampling_offsets.bias.detach().view(8, 2, 4, 2)
    # One direction a head, 45 degrees apart; the point with number i lies i cells away in the larger coordinate.
    assert torch.allclose(bias.abs().amax(-1), torch.arange(1.0, 5.0).expand(8, 2, 4))
    angles = torch.atan2(bias[..., 1], bias[..., 0])[:, 0, 0] % (2 * math.pi)
    torch.testing.assert_close(angles, torch.arange(8) * math.pi / 4, atol=1e-5, rtol=0)
