"""The attention module of NAT and DiNAT, with the padding of small maps that published models were trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import BACKENDS, neighborhood_attention_2d
from .ops.exportable import pad_map


class NeighborhoodAttention2D(nn.Module):
    """Multi-head neighborhood attention over a map (DiNAT, arXiv 2209.15001, section 3).

    Maps smaller than kernel_size * dilation are padded with zeros at the bottom and right before the projection to
    query, key and value, and cropped after: padding tokens take part as keys. Published models need this
    (a side of 512 pixels gives 128 rows at the first level, fewer than 11 * 14).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        rel_pos_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
    ) -> None:
        """Make the module; `qk_scale` None means head_dim ** -0.5.

        Raises:
            ValueError: `dim` is no multiple of `num_heads`, or the backend is unknown.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.scale = qk_scale
        self.attn_drop = attn_drop
        self.backend = backend
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter("rpb", None)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, dim] to [B, H, W, dim]."""
        height, width = x.shape[1:3]
        smallest = self.kernel_size * self.dilation
        if isinstance(height, int) and isinstance(width, int):
            x = F.pad(x, (0, 0, 0, max(0, smallest - width), 0, max(0, smallest - height)))
        else:  # in an export
            x = pad_map(x, smallest)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        x = neighborhood_attention_2d(
            query,
            key,
            value,
            self.rpb,
            self.kernel_size,
            self.dilation,
            self.scale,
            self.backend,
            self.attn_drop if self.training else 0.0,
        )
        x = x[:, :height, :width].flatten(-2)
        return self.proj_drop(self.proj(x))

    def extra_repr(self) -> str:
        """Settings that no submodule shows."""
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"
