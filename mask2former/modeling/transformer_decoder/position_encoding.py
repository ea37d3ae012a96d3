"""Sine position embedding of a map (Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, A.4)."""

import math

import torch
from torch import Tensor, nn


class PositionEmbeddingSine(nn.Module):
    """Half of the channels encode the row, half the column; within each, sines and cosines alternate."""

    def __init__(self, num_channels: int, temperature: float = 10000.0) -> None:
        """Make an embedding of `num_channels`, a multiple of 4."""
        super().__init__()
        if num_channels % 4:
            raise ValueError(f"num_channels must be a multiple of 4, got {num_channels}")
        self.num_channels = num_channels
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Embed the positions of a map [B, C, H, W]: float32 [1, num_channels, H, W]."""
        rows, columns = (self._axis(size, x.device) for size in x.shape[-2:])
        half, height, width = self.num_channels // 2, *x.shape[-2:]
        rows = rows.T[:, :, None].expand(half, height, width)
        columns = columns.T[:, None, :].expand(half, height, width)
        return torch.cat([rows, columns])[None]

    def _axis(self, size: int, device: torch.device) -> Tensor:
        """Embed 1 .. size, normalised to 2 pi: [size, num_channels / 2]."""
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * (2 * math.pi)
        channel = torch.arange(0, self.num_channels // 2, 2, dtype=torch.float32, device=device)
        angle = position[:, None] / self.temperature ** (channel / (self.num_channels // 2))
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
