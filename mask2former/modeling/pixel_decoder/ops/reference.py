"""Deformable attention by `grid_sample`: plain PyTorch, for any device, exportable.

Shapes:
    B: images; S: positions of all levels together; n: heads; D: channels of a head; L: levels; P: points; T: queries
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import Shapes, computing_dtype


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
