"""The DiNAT backbone (Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001).

Shapes:
    B: images; H, W: height and width of an image or map; C: channels of a map, embed_dim at the first level
    Maps are channels last, [B, H, W, C], between the tokenizer and the outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .config import BackboneConfigError
from .ops import check_settings, neighborhood_attention_2d
from .ops.exportable import pad_map


class NeighborhoodAttention2D(nn.Module):
    """Multi-head neighborhood attention over a map (DiNAT, arXiv 2209.15001, section 3).

    Maps smaller than kernel_size * dilation are padded with zeros at the bottom and right before the projection to
    query, key and value, and cropped afterwards, so that padding tokens take part as keys. Published models were
    trained with this padding: an image side of 512 pixels gives 128 rows at the first level, fewer than 11 * 14.
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
        """Create the module; `MODEL.DINAT` in config.py describes the settings.

        Raises:
            BackboneConfigError: `dim` is not a multiple of `num_heads`, or a setting is invalid.
        """
        super().__init__()
        check_settings(kernel_size, dilation, backend)
        if dim % num_heads:
            raise BackboneConfigError(f"dim {dim} is not a multiple of num_heads {num_heads}")
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
        else:  # symbolic sizes, in an export
            x = pad_map(x, smallest)
        query_key_value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        settings = (self.kernel_size, self.dilation, self.scale, self.backend)
        dropout = self.attn_drop if self.training else 0.0
        x = neighborhood_attention_2d(*query_key_value, self.rpb, *settings, dropout)
        x = x[:, :height, :width].flatten(-2)
        return self.proj_drop(self.proj(x))

    def extra_repr(self) -> str:
        """Return the settings that the submodules do not show."""
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2: image [B, 3, H, W] to tokens [B, H/4, W/4, dim], sides rounded up."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, dim // 2, kernel_size=3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/4, W/4, dim]."""
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to [B, H/2, W/2, 2C], sides rounded up."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., dim] to the same shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DiNATBlock(nn.Module):
    """Neighborhood attention and an MLP, each preceded by a LayerNorm and with a residual connection."""

    gamma1: Tensor | None
    gamma2: Tensor | None

    def __init__(
        self, attention: NeighborhoodAttention2D, mlp: Mlp, *, drop_path: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        dim = mlp.fc1.in_features
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, mode="row")
        for name in ("gamma1", "gamma2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        x = x + self._branch(self.attn(self.norm1(x)), self.gamma1)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma2)

    def _branch(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(x if gamma is None else gamma * x)


class DiNATLevel(nn.Module):
    """Blocks of one resolution, followed by the step to the next level, except after the last one."""

    def __init__(self, blocks: Sequence[DiNATBlock], downsample: ConvDownsampler | None, use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, H, W, C] to the output of the level and the input of the next one (the output, after the last)."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class DiNAT(Backbone):
    """Up to four levels of neighborhood attention; their maps of strides 4, 8, 16, 32 are normalized by LayerNorms."""

    FEATURES = ("res2", "res3", "res4", "res5")

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: int = 7,
        kernel_sizes: Sequence[int] = (),
        dilations: Sequence[Sequence[int]] = (),
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        rel_pos_bias: bool = True,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        in_channels: int = 3,
        out_features: Sequence[str] = FEATURES,
        freeze_at: int = 0,
        attention_backend: str = "auto",
        use_checkpoint: bool = False,
    ) -> None:
        """Create the backbone; `MODEL.DINAT` in config.py describes the settings.

        `freeze_at` counts as in Detectron2's ResNet: 1 freezes the tokenizer, 2 also the first level, up to 5.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        super().__init__()
        dilations = dilations or [[1] * depth for depth in depths]
        kernel_sizes = kernel_sizes or [kernel_size] * len(depths)
        _check_levels(depths, num_heads, kernel_sizes, dilations, out_features)
        if not 0 <= freeze_at <= len(depths) + 1:
            raise BackboneConfigError(
                f"freeze_at must be from 0 (nothing) to {len(depths) + 1} (everything), got {freeze_at}"
            )
        drop_path_step = drop_path_rate / max(1, sum(depths) - 1)
        dims = [embed_dim * 2**level for level in range(len(depths))]
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale, "rel_pos_bias": rel_pos_bias}
        attention |= {"attn_drop": attn_drop_rate, "proj_drop": drop_rate, "backend": attention_backend}

        self.patch_embed = ConvTokenizer(in_channels, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.levels = nn.ModuleList()
        for level, dim in enumerate(dims):
            blocks = [
                DiNATBlock(
                    NeighborhoodAttention2D(dim, num_heads[level], kernel_sizes[level], dilation, **attention),
                    Mlp(dim, int(dim * mlp_ratio), drop_rate),
                    drop_path=index * drop_path_step,
                    layer_scale=layer_scale,
                )
                for index, dilation in enumerate(dilations[level], start=sum(depths[:level]))
            ]
            downsample = ConvDownsampler(dim) if level + 1 < len(dims) else None
            # A frozen level keeps no activations for a backward pass; checkpoints would keep the inputs of its blocks.
            self.levels.append(DiNATLevel(blocks, downsample, use_checkpoint and level >= freeze_at - 1))

        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(self.FEATURES, dims, strict=False))
        self._out_feature_strides = {name: 4 * 2**level for level, name in enumerate(self.FEATURES[: len(dims)])}
        for level, name in enumerate(self.FEATURES[: len(dims)]):
            if name in out_features:
                self.add_module(f"norm{level}", nn.LayerNorm(dims[level]))
        self.apply(_initialize)
        self._frozen = self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        """Turn off the gradients of the first `freeze_at` stages and return the modules of these stages."""
        frozen: list[nn.Module] = [self.patch_embed, self.pos_drop] if freeze_at >= 1 else []
        for level in range(freeze_at - 1):
            frozen.append(self.levels[level])
            if self.FEATURES[level] in self._out_features:
                frozen.append(self.get_submodule(f"norm{level}"))
        for module in frozen:
            module.requires_grad_(False)
        return frozen

    def train(self, mode: bool = True) -> "DiNAT":
        """Set the mode; frozen stages stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Map a normalized image [B, 3, H, W] to {"res2": [B, C, H/4, W/4], ..., "res5": [B, 8C, H/32, W/32]}.

        Sides need not be multiples of 32; they are rounded up at each step.
        """
        outputs = {}
        x = self.pos_drop(self.patch_embed(image))
        for level, (name, module) in enumerate(zip(self.FEATURES, self.levels, strict=False)):
            output, x = module(x)
            if name in self._out_features:
                norm = self.get_submodule(f"norm{level}")
                outputs[name] = norm(output).permute(0, 3, 1, 2).contiguous()
        return outputs


@BACKBONE_REGISTRY.register()
class D2DiNAT(DiNAT):
    """`DiNAT` built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    @configurable
    def __init__(self, **settings: Any) -> None:
        """See `DiNAT`."""
        super().__init__(**settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Pass each key of `MODEL.DINAT` to the argument of `DiNAT` with the same name in lower case."""
        settings: dict[str, Any] = {key.lower(): value for key, value in cfg.MODEL.DINAT.items()}
        return settings | {"in_channels": input_shape.channels, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}


def _check_levels(
    depths: Sequence[int],
    num_heads: Sequence[int],
    kernel_sizes: Sequence[int],
    dilations: Sequence[Sequence[int]],
    out_features: Sequence[str],
) -> None:
    levels = len(depths)
    if not 1 <= levels <= len(DiNAT.FEATURES):
        raise BackboneConfigError(f"depths must list 1 to {len(DiNAT.FEATURES)} levels, got {list(depths)}")
    for name, entries in (("num_heads", num_heads), ("kernel_sizes", kernel_sizes)):
        if len(entries) != levels:
            raise BackboneConfigError(f"{name} must have one entry per level ({levels}), got {list(entries)}")
    if [len(level) for level in dilations] != list(depths):
        raise BackboneConfigError(
            f"dilations must have one entry per block: lengths {list(depths)}, got {list(dilations)}"
        )
    unknown = set(out_features) - set(DiNAT.FEATURES[:levels])
    if unknown or not out_features:
        raise BackboneConfigError(f"out_features must be among {DiNAT.FEATURES[:levels]}, got {list(out_features)}")


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
