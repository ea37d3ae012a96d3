"""ViT-rpb: a vision transformer whose only position information is a relative position bias.

It is the baseline of the isotropic models in Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143):
the same network, with attention over the whole map.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from .backbone import FromConfig, OneLevelBackbone
from .blocks import check_heads, new_bias_table
from .classifier import Classifier
from .config import BackboneConfigError
from .one_level import OneLevel, only_level


class GlobalAttention2D(nn.Module):
    """Multi-head attention over a map of fixed size, with a relative position bias.

    The bias of a query at (qy, qx) and a key at (ky, kx) is `rpb[:, ky - qy + side - 1, kx - qx + side - 1]`, in the
    direction of `neighborhood_attention_2d`.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        side: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        """Create the module for maps of side * side positions.

        Raises:
            BackboneConfigError: `dim` is not a multiple of `num_heads`.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.side = side
        self.scale = qk_scale
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.rpb = new_bias_table(num_heads, side)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        # Part of published checkpoints. The bias below follows from the sides alone.
        y, x = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        rows, columns = y - y[:, None] + side - 1, x - x[:, None] + side - 1
        self.register_buffer("relative_position_index", rows * (2 * side - 1) + columns)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, side, side, dim] to the same shape."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).flatten(1, 2).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._bias().to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        x = x.permute(0, 2, 1, 3).flatten(-2).unflatten(1, (self.side, self.side))
        return self.proj_drop(self.proj(x))

    def neighbors(self, size: int) -> Tensor:
        """Positions that each position of an axis attends to, which are all: [size, size]."""
        return torch.arange(size).expand(size, -1)

    def _bias(self) -> Tensor:
        """Bias of all pairs of positions, [heads, side * side queries, side * side keys]."""
        # The keys of a query are a window of the table that moves against the query.
        windows = self.rpb.unfold(1, self.side, 1).unfold(2, self.side, 1).flip(1, 2)
        return windows.flatten(3).flatten(1, 2)

    def extra_repr(self) -> str:
        """Return the settings that the submodules do not show."""
        return f"num_heads={self.num_heads}, side={self.side}"


class ViTRpb(OneLevel):
    """ViT-rpb up to its last block. Images must have the size that it was made for."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        image_size: int = 224,
        patch_size: int = 16,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **settings: Any,
    ) -> None:
        """Create the network; `MODEL.DINAT` in config.py describes the settings. Lists have one entry, for one level.

        The further `settings` are those of `OneLevel`.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        if image_size % patch_size:
            raise BackboneConfigError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        heads, side = only_level("num_heads", num_heads), image_size // patch_size
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
        attention |= {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
        super().__init__(
            [GlobalAttention2D(embed_dim, heads, side, **attention) for _ in range(only_level("depths", depths))],
            embed_dim=embed_dim,
            patch_size=patch_size,
            drop_rate=drop_rate,
            **settings,
        )
        self.image_size = image_size

    def stage_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image [B, 3, image_size, image_size] to the outputs of the blocks.

        Raises:
            BackboneConfigError: The image has another size.
        """
        height, width = image.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            raise BackboneConfigError(
                f"this ViT-rpb takes images of {self.image_size} x {self.image_size} pixels, got {height} x {width}"
            )
        return super().stage_maps(image)


class ViTRpbClassifier(Classifier, ViTRpb):
    """ViT-rpb as an image classifier."""


@BACKBONE_REGISTRY.register()
class D2ViTRpb(FromConfig, OneLevelBackbone, ViTRpb):
    """ViT-rpb built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    unused_keys = ("KERNEL_SIZE", "KERNEL_SIZES", "DILATIONS", "REL_POS_BIAS", "OUT_FEATURES", "ATTENTION_BACKEND")
