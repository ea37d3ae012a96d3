"""Multi-scale deformable attention by `grid_sample`: plain PyTorch, for any device, exportable."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_forward(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum bilinear samples level by level; see `ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    # In 16 bits, `grid_sample` on the CPU has given NaN for points inside the map (PyTorch 2.14).
    dtype = computing_dtype(value)
    grids = (2 * sampling_locations.to(dtype) - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B n, T, P, 2]
    sampled = []
    per_level = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    for (height, width), level, grid in zip(spatial_shapes, per_level, grids, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(dtype).permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [B n, C / n, T]
    return output.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def computing_dtype(value: Tensor) -> torch.dtype:
    """Type that sums are made in: float64 for float64, float32 for all others."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32
