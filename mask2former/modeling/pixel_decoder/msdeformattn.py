"""The deformable pixel decoder (Cheng et al., Mask2Former, CVPR 2022, section 3.2.2; Zhu et al., Deformable DETR).

Shapes:
    B: images; C: channels of a map; E: conv_dim; S: positions of all encoder levels together
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ..transformer_decoder.position_encoding import PositionEmbeddingSine
from .ops import MSDeformAttn

# Width of the encoder's feed-forward layers in all published models; no config key sets it.
_ENCODER_DIM_FEEDFORWARD = 1024


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by residual and LayerNorm."""

    def __init__(
        self,
        dim: int,
        dim_feedforward: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels, num_heads, num_points, attention_backend)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, source: Tensor, position: Tensor, reference_points: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Map tokens [B, S, E] to the same shape."""
        attended = self.self_attn(source + position, reference_points, source, shapes)
        source = self.norm1(source + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(source), inplace=True))
        return self.norm2(source + self.dropout(self.linear2(hidden)))


class MSDeformAttnEncoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, layers: Sequence[MSDeformAttnEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, source: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens [B, S, E] to the same shape; each looks around the centre of its own cell, in every level."""
        reference_points = torch.cat([_cell_centres(*shape, source.device) for shape in shapes])
        for layer in self.layers:
            source = layer(source, position, reference_points, shapes)
        return source


class MSDeformAttnTransformer(nn.Module):
    """Flattens maps to tokens, marks their level, runs the encoder and cuts its output into maps again."""

    def __init__(self, encoder: MSDeformAttnEncoder, dim: int, num_levels: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.encoder = encoder
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Map [B, E, H, W] of each level to the same shapes; positions are [1, E, H, W]."""
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        source = torch.cat([_tokens(x) for x in maps], dim=1)
        levels = zip(positions, self.level_embed, strict=True)
        position = torch.cat([_tokens(x) + embed for x, embed in levels], dim=1)
        output = self.encoder(source, position, shapes)
        parts = output.split([height * width for height, width in shapes], dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone maps to per-pixel embeddings at stride 4 and three maps for the transformer decoder, all in float32."""

    NUM_FEATURE_LEVELS = 3

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        transformer_in_features: Sequence[str],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        dropout: float,
        attention_backend: str = "auto",
    ) -> None:
        """Make the decoder; keys of `MODEL.SEM_SEG_HEAD` say what the settings mean."""
        super().__init__()
        by_stride = sorted(in_features, key=lambda name: _stride(input_shape, name))
        # Names of the levels, coarse to fine: the order of `input_proj` in checkpoints.
        self.encoder_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        steps = int(math.log2(_stride(input_shape, self.encoder_features[-1]) / common_stride))
        # Finer maps that join after the encoder, from the finest encoder map towards `common_stride`.
        self.lateral_features = by_stride[:steps][::-1]

        self.input_proj = nn.ModuleList(
            _input_projection(_channels(input_shape, name), conv_dim) for name in self.encoder_features
        )
        num_levels = len(self.encoder_features)
        layers = [
            MSDeformAttnEncoderLayer(
                conv_dim, _ENCODER_DIM_FEEDFORWARD, dropout, num_levels, num_heads, num_points, attention_backend
            )
            for _ in range(num_layers)
        ]
        self.transformer = MSDeformAttnTransformer(MSDeformAttnEncoder(layers), conv_dim, num_levels)
        self.position_embedding = PositionEmbeddingSine(conv_dim)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)
        for index, name in enumerate(self.lateral_features, start=1):
            use_bias = norm == ""
            lateral = Conv2d(
                _channels(input_shape, name), conv_dim, kernel_size=1, bias=use_bias, norm=get_norm(norm, conv_dim)
            )
            output = Conv2d(
                conv_dim,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=use_bias,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"adapter_{index}", lateral)
            self.add_module(f"layer_{index}", output)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read `MODEL.SEM_SEG_HEAD`, and the dropout of `MODEL.MASK_FORMER`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "attention_backend": head.DEFORMABLE_ATTENTION_BACKEND,
        }

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map {name: [B, C, H, W]} to mask features [B, mask_dim, H/4, W/4] and maps [B, E, h, w], coarse to fine."""
        device_type = next(iter(features.values())).device.type
        # Sampling offsets are fractions of a cell: reduced precision moves them visibly.
        with torch.autocast(device_type, enabled=False):
            features = {name: x.float() for name, x in features.items()}
            sources = [project(features[n]) for project, n in zip(self.input_proj, self.encoder_features, strict=True)]
            maps = self.transformer(sources, [self.position_embedding(x) for x in sources])
            for index, name in enumerate(self.lateral_features, start=1):
                adapted = _add_upsampled(self.get_submodule(f"adapter_{index}")(features[name]), maps[-1])
                maps.append(self.get_submodule(f"layer_{index}")(adapted))
            return self.mask_features(maps[-1]), maps[: self.NUM_FEATURE_LEVELS]


def _input_projection(in_channels: int, conv_dim: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, conv_dim, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.GroupNorm(32, conv_dim))


def _add_upsampled(x: Tensor, coarse: Tensor) -> Tensor:
    """Add a coarser map. A function, so that in inference nothing but the sum outlives it."""
    return x + F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _tokens(x: Tensor) -> Tensor:
    """Turn a map [B, E, H, W] into [B, H * W, E]."""
    return x.flatten(2).transpose(1, 2)


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(x, y) of all cells of a map, row by row, in units of its sides: [H * W, 2]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


def _stride(shapes: dict[str, ShapeSpec], name: str) -> int:
    return _known(shapes, name).stride or 1


def _channels(shapes: dict[str, ShapeSpec], name: str) -> int:
    return _known(shapes, name).channels or 0


def _known(shapes: dict[str, ShapeSpec], name: str) -> ShapeSpec:
    if name not in shapes:
        raise ValueError(f"the backbone has no output {name!r} (it has {', '.join(shapes)}); see MODEL.SEM_SEG_HEAD")
    return shapes[name]
