"""The deformable pixel decoder (Cheng et al., Mask2Former, CVPR 2022, section 3.2.2; Zhu et al., Deformable DETR).

Shapes:
    B: images; C: channels of a backbone map; E: conv_dim; H, W: height and width of a map
    S: positions of all encoder levels together; T: queries, in the encoder the same S positions
    n: heads; L: levels; P: points
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from dinat_common.cpu import map_tokens

from ...config import ConfigError
from ..transformer_decoder import PositionEmbeddingSine
from .ops import check_backend, ms_deform_attn

# Width of the feed-forward layers of the encoder in all published models; no config key sets it.
_ENCODER_DIM_FEEDFORWARD = 1024


class MSDeformAttn(nn.Module):
    """Deformable attention whose sampling offsets and weights are linear functions of the query."""

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        if dim % num_heads:
            raise ConfigError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.backend = backend
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Place the points of each head 1, 2, ... cells away in a direction of its own, with equal weights."""
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
        """Attend from `query` [B, T, E] to `source` [B, S, E] around `reference_points` [T, 2], (x, y) in 0..1."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(source).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        cells = torch.tensor([(width, height) for height, width in spatial_shapes], device=query.device)
        # Broadcasting over inner dimensions is slow, therefore one divisor for each offset of a query.
        locations = offsets / cells[:, None, :].expand(*shape, 2).contiguous()
        locations = locations + reference_points[:, None, None, None, :]
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights, self.backend))


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
        return map_tokens(self._feed_forward, source)

    def _feed_forward(self, source: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.linear1(source), inplace=True))
        return self.norm2(source + self.dropout(self.linear2(hidden)))


class MSDeformAttnEncoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, layers: Sequence[MSDeformAttnEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, source: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens [B, S, E] to the same shape; each samples around the centre of its own cell, in every level."""
        reference_points = torch.cat([_cell_centres(*shape, source.device) for shape in shapes])
        for layer in self.layers:
            source = layer(source, position, reference_points, shapes)
        return source


class MSDeformAttnTransformer(nn.Module):
    """Flattens maps to tokens, adds level embeddings, runs the encoder and reshapes its output to maps."""

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
        # Not `transpose` and then `unflatten`: strides of a single image would look like channels first.
        return [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Maps from the backbone to embeddings per pixel at stride 4 and three maps for the transformer decoder.

    Everything is computed in float32, also under autocast.
    """

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
        """Create the decoder; the keys of `MODEL.SEM_SEG_HEAD` in config.py describe the settings.

        Raises:
            ConfigError: A setting is invalid, or names an output that the backbone does not have.
        """
        super().__init__()
        for name in in_features:
            if name not in input_shape:
                names = ", ".join(input_shape)
                raise ConfigError(f"the backbone has no output {name!r} (it has {names}); see MODEL.SEM_SEG_HEAD")
        strides = {name: shape.stride or 1 for name, shape in input_shape.items()}
        channels = {name: shape.channels or 0 for name, shape in input_shape.items()}
        by_stride = sorted(in_features, key=strides.__getitem__)
        # Levels from coarse to fine: the order of `input_proj` in checkpoints.
        self.encoder_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        steps = int(math.log2(strides[self.encoder_features[-1]] / common_stride))
        # Finer maps that are added after the encoder, from the finest encoder map towards `common_stride`.
        self.lateral_features = by_stride[:steps][::-1]

        self.input_proj = nn.ModuleList(_input_projection(channels[name], conv_dim) for name in self.encoder_features)
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
        relu = partial(F.relu, inplace=True)
        convolution = partial(Conv2d, out_channels=conv_dim, bias=norm == "")
        for index, name in enumerate(self.lateral_features, start=1):
            lateral = convolution(channels[name], kernel_size=1, norm=get_norm(norm, conv_dim))
            output = convolution(conv_dim, kernel_size=3, padding=1, norm=get_norm(norm, conv_dim), activation=relu)
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
        """Map {name: [B, C, H, W]} to mask features [B, mask_dim, H, W] and maps [B, E, H, W], coarse to fine."""
        device_type = next(iter(features.values())).device.type
        # Sampling offsets are fractions of a cell, which reduced precision changes visibly. The meta device has no
        # autocast.
        with torch.autocast("cpu" if device_type == "meta" else device_type, enabled=False):
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
    """Add a coarser map; a function, so that the resized map is freed on return in inference."""
    return x + F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _tokens(x: Tensor) -> Tensor:
    """Reshape a map [B, E, H, W] to tokens [B, H * W, E]."""
    return x.flatten(2).transpose(1, 2)


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(x, y) of all cells of a map, row by row, in units of its sides: [H * W, 2]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
