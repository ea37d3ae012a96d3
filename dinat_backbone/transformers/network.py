"""The network of NAT and DiNAT with the names that published checkpoints of the transformers library have.

It computes what `dinat_backbone.dinat` computes, with `neighborhood_attention_2d`, which needs no NATTEN.

Shapes:
    B: images; H, W: height and width of an image or map; C: channels of a map
    Maps are channels last, [B, H, W, C].
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..blocks import check_heads, drop_path_rates, new_bias_table, pad_to_window
from ..config import BackboneConfigError
from ..dinat import ConvDownsampler
from ..hierarchy import check_levels
from ..ops import check_settings, neighborhood_attention_2d
from .configuration import NeighborhoodConfig

Maps = tuple[Tensor, ...]
_STRIDE = 4


class PatchEmbeddings(nn.Module):
    """Two 3x3 convolutions of stride 2, with nothing between them."""

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        if config.patch_size != _STRIDE:
            raise BackboneConfigError(f"patch_size {config.patch_size}: the tokenizer of NAT and DiNAT has stride 4")
        dim = config.embed_dim
        self.projection = nn.Sequential(
            nn.Conv2d(config.num_channels, dim // 2, kernel_size=3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/4, W/4, C], sides rounded up."""
        return self.projection(pixel_values).permute(0, 2, 3, 1)


class Embeddings(nn.Module):
    """The tokenizer: convolutions, a LayerNorm and dropout."""

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/4, W/4, C], sides rounded up."""
        return self.dropout(self.norm(self.patch_embeddings(pixel_values)))


class NeighborhoodSelfAttention(nn.Module):
    """Neighborhood attention with separate projections; small maps are padded as in `NeighborhoodAttention2D`."""

    def __init__(self, config: NeighborhoodConfig, dim: int, num_heads: int, dilation: int) -> None:
        super().__init__()
        check_settings(config.kernel_size, dilation, "auto")
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.kernel_size = config.kernel_size
        self.dilation = dilation
        self.dropout = config.attention_probs_dropout_prob
        self.rpb = new_bias_table(num_heads, config.kernel_size)
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        height, width = x.shape[1:3]
        x = pad_to_window(x, self.kernel_size * self.dilation)
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)) for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        x = neighborhood_attention_2d(query, key, value, self.rpb, self.kernel_size, self.dilation, dropout_p=dropout)
        return x[:, :height, :width].flatten(-2)


class Dense(nn.Module):
    """A linear layer called `dense`, and dropout."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return self.dropout(self.dense(x))


class NeighborhoodAttention(nn.Module):
    """Neighborhood attention and its output projection."""

    def __init__(self, config: NeighborhoodConfig, dim: int, num_heads: int, dilation: int) -> None:
        super().__init__()
        self.self = NeighborhoodSelfAttention(config, dim, num_heads, dilation)
        self.output = Dense(dim, dim, config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        return self.output(self.self(x))


class NeighborhoodLayer(GradientCheckpointingLayer):
    """Neighborhood attention and an MLP, each preceded by a LayerNorm and with a residual connection.

    `layer_scale_parameters` [2, C] scales the channels of the two branches; it is None without layer scale.
    """

    layer_scale_parameters: nn.Parameter | None

    def __init__(self, config: NeighborhoodConfig, dim: int, num_heads: int, dilation: int, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * config.mlp_ratio)
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = NeighborhoodAttention(config, dim, num_heads, dilation)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.intermediate = Dense(dim, hidden)
        self.activation = ACT2FN[config.hidden_act]
        self.output = Dense(hidden, dim, config.hidden_dropout_prob)
        initial = config.layer_scale_init_value
        scales = nn.Parameter(torch.full((2, dim), float(initial))) if initial > 0 else None
        self.register_parameter("layer_scale_parameters", scales)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        hidden_states = hidden_states + self._branch(0, self.attention(self.layernorm_before(hidden_states)))
        expanded = self.activation(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states + self._branch(1, self.output(expanded))

    def _branch(self, number: int, x: Tensor) -> Tensor:
        scales = self.layer_scale_parameters
        return self.drop_path(x if scales is None else scales[number] * x)


class NeighborhoodLevel(nn.Module):
    """Layers of one resolution, followed by the step to the next level, except after the last one."""

    def __init__(self, layers: list[NeighborhoodLayer], downsample: ConvDownsampler | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, H, W, C] to the output of the level and the input of the next one (the output, after the last)."""
        for layer in self.layers:
            x = layer(x)
        return x, x if self.downsample is None else self.downsample(x)


class NeighborhoodEncoder(nn.Module):
    """All levels."""

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        # transformers' own DinatConfig has the same fields; NAT has no dilations.
        dilations = getattr(config, "dilations", None) or [[1] * depth for depth in config.depths]
        check_levels(config.depths, config.num_heads, [config.kernel_size] * len(config.depths), dilations)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.levels = nn.ModuleList()
        for level, num_heads in enumerate(config.num_heads):
            dim = config.embed_dim * 2**level
            layers = [NeighborhoodLayer(config, dim, num_heads, dilation, next(rates)) for dilation in dilations[level]]
            self.levels.append(
                NeighborhoodLevel(layers, ConvDownsampler(dim) if level + 1 < len(config.depths) else None)
            )

    def forward(self, x: Tensor) -> tuple[Maps, Maps]:
        """Map the tokens to the outputs of the levels, before and after downsampling; the tokens come first in both."""
        before, after = [x], [x]
        for level in self.levels:
            output, x = level(x)
            before.append(output)
            after.append(x)
        return tuple(before), tuple(after)
