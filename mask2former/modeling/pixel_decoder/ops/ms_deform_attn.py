"""Multi-scale deformable attention in plain PyTorch (Zhu et al., "Deformable DETR", ICLR 2021, equation 3).

Shapes:
    B: images; S: positions of all levels together; C: channels; L: levels; n: heads; P: points; T: queries
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum bilinear samples of `value`, weighted.

    Args:
        value: [B, S, n, C / n], the levels one after the other, each row by row.
        spatial_shapes: height and width of each level.
        sampling_locations: [B, T, n, L, P, 2], (x, y) with 0 and 1 at the outer edges of a map; zeros outside.
        attention_weights: [B, T, n, L, P].

    Returns:
        [B, T, C].
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    grids = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B n, T, P, 2]
    sampled = []
    per_level = value.split([height * width for height, width in spatial_shapes], dim=1)
    for (height, width), level, grid in zip(spatial_shapes, per_level, grids, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [B n, C / n, T]
    return output.view(batch, heads * channels, queries).transpose(1, 2)


class MSDeformAttn(nn.Module):
    """Deformable attention of one query per position: offsets and weights are read off the query."""

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point each head in a direction of its own, its points 1, 2, ... cells away; attend all of them alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        ring = direction[:, None, None, :] * distance[None, None, :, None]  # [n, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, source: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend `source` [B, S, C] from `query` [B, T, C] around `reference_points` [T, 2], (x, y) in 0..1."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(source).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        cells = torch.tensor([(width, height) for height, width in spatial_shapes], device=query.device)
        locations = reference_points[:, None, None, None, :] + offsets / cells[:, None, :]
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights))
