"""The masked-attention transformer decoder (Cheng et al., Mask2Former, CVPR 2022, section 3.2).

Shapes:
    B: images; Q: queries; C: hidden_dim; K: classes; H, W: height and width at stride 4
    h, w: height and width of a level; S: positions of a level
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ...config import ConfigError

# Transformer decoders, called with (cfg, in_channels). They map the maps of a pixel decoder, coarse to fine, and mask
# features to a dict of predictions; see `MultiScaleMaskedTransformerDecoder.forward`.
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")


class PositionEmbeddingSine(nn.Module):
    """Sine position embedding of a map (Carion et al., DETR, ECCV 2020, A.4).

    Half of the channels encode the row, half the column; within each half, sines and cosines alternate.
    """

    def __init__(self, num_channels: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if num_channels % 4:
            raise ConfigError(f"num_channels must be a multiple of 4, got {num_channels}")
        self.num_channels = num_channels
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of the positions of a map [B, C, h, w]: float32 [1, num_channels, h, w]."""
        rows, columns = (self._axis(size, x.device) for size in x.shape[-2:])
        half, height, width = self.num_channels // 2, *x.shape[-2:]
        rows = rows.T[:, :, None].expand(half, height, width)
        columns = columns.T[:, None, :].expand(half, height, width)
        return torch.cat([rows, columns])[None]

    def _axis(self, size: int, device: torch.device) -> Tensor:
        """Return the embedding of 1 .. size, normalized to 2 pi: [size, num_channels / 2]."""
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * (2 * math.pi)
        channel = torch.arange(0, self.num_channels // 2, 2, dtype=torch.float32, device=device)
        angle = position[:, None] / self.temperature ** (channel / (self.num_channels // 2))
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's module with the same parameters, but with one mask for all heads instead of a copy for each."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:  # type: ignore
        """Attend from [B, Q, C] to [B, S, C] except where `blocked`, bool [B, Q, S], is set; return [B, Q, C]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if blocked is None else ~blocked[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _ResidualLayer(nn.Module):
    """Dropout, residual connection and LayerNorm around a branch; the norm follows the sum or precedes the branch."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def before(self, queries: Tensor) -> Tensor:
        """Return the input of the branch."""
        return self.norm(queries) if self.pre_norm else queries

    def after(self, queries: Tensor, branch: Tensor) -> Tensor:
        """Add the output of the branch."""
        queries = queries + self.dropout(branch)
        return queries if self.pre_norm else self.norm(queries)

    def _initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class SelfAttentionLayer(_ResidualLayer):
    """Self-attention of the queries."""

    def __init__(self, dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, dropout, pre_norm)
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self._initialize()

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """Map queries [B, Q, C] to the same shape; `query_position` [Q, C] is added to queries and keys."""
        x = self.before(queries)
        positioned = x + query_position
        return self.after(queries, self.self_attn(positioned, positioned, x))


class CrossAttentionLayer(_ResidualLayer):
    """Attention from the queries to a map; each query attends inside the mask that it predicted before."""

    def __init__(self, dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, dropout, pre_norm)
        self.multihead_attn = MultiheadAttention(dim, num_heads, dropout)
        self._initialize()

    def forward(
        self, queries: Tensor, memory: Tensor, blocked: Tensor, memory_position: Tensor, query_position: Tensor
    ) -> Tensor:
        """Map queries [B, Q, C] to the same shape, given memory [B, S, C] and `blocked` bool [B, Q, S]."""
        x = self.before(queries)
        return self.after(queries, self.multihead_attn(x + query_position, memory + memory_position, memory, blocked))


class FFNLayer(_ResidualLayer):
    """Two linear layers with a ReLU between them."""

    def __init__(self, dim: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, dropout, pre_norm)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self._initialize()

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries [B, Q, C] to the same shape."""
        hidden = self.dropout(F.relu(self.linear1(self.before(queries))))
        return self.after(queries, self.linear2(hidden))


class MLP(nn.Module):
    """Linear layers with ReLUs between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries attend to one level after the other, each inside its own mask, and predict classes and masks."""

    NUM_FEATURE_LEVELS = 3

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        mask_dim: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
        enforce_input_project: bool = False,
    ) -> None:
        """Create the decoder; the keys of `MODEL.MASK_FORMER` in config.py describe the settings.

        The number of predictions is `num_layers` + 1, because the learned queries also predict.
        """
        super().__init__()
        self.position_embedding = PositionEmbeddingSine(hidden_dim)
        attention = (hidden_dim, num_heads, dropout, pre_norm)
        layers = range(num_layers)
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(*attention) for _ in layers)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(*attention) for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, dropout, pre_norm) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.NUM_FEATURE_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, kernel_size=1) if project else nn.Sequential()
            for _ in range(self.NUM_FEATURE_LEVELS)
        )
        if project:
            for convolution in self.input_proj:
                c2_xavier_fill(convolution)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        """Read `MODEL.MASK_FORMER`."""
        node = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "num_heads": node.NHEADS,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            "num_layers": node.DEC_LAYERS - 1,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "dropout": node.DROPOUT,
            "pre_norm": node.PRE_NORM,
            "enforce_input_project": node.ENFORCE_INPUT_PROJ,
        }

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, aux_outputs: bool = True) -> dict[str, Any]:
        """Predict classes and masks.

        Args:
            maps: Three maps [B, in_channels, h, w], coarse to fine.
            mask_features: Embeddings per pixel [B, mask_dim, H, W].
            aux_outputs: Whether to keep all predictions, for deep supervision; they need most of the memory.

        Returns:
            `pred_logits` [B, Q, K + 1], whose last class is "no object"; `pred_masks`, logits [B, Q, H, W]; and
            `aux_outputs`, a list of dicts with the same two entries for the learned queries and for all layers but the
            last, empty without `aux_outputs`.
        """
        shapes = [x.shape[-2:] for x in maps]
        positions = [self.position_embedding(x).flatten(2).transpose(1, 2) for x in maps]
        memories = [
            project(x).flatten(2).transpose(1, 2) + level
            for project, x, level in zip(self.input_proj, maps, self.level_embed.weight, strict=True)
        ]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        query_position = self.query_embed.weight
        # Products and bilinear resizing can be exchanged. Without auxiliary outputs, the masks that limit attention are
        # computed at the size of a level, from embeddings that are resized once.
        level_features = [] if aux_outputs else [_resize(mask_features, shape) for shape in shapes]
        predictions: list[dict[str, Tensor]] = []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % self.NUM_FEATURE_LEVELS
            if aux_outputs:
                predictions.append(self._predict(queries, mask_features))
                logits = _resize(predictions[-1]["pred_masks"].detach().float(), shapes[level])
            else:
                logits = self._masks(self.decoder_norm(queries), level_features[level]).detach().float()
            queries = cross_attention(queries, memories[level], _blocked(logits), positions[level], query_position)
            queries = self_attention(queries, query_position)
            queries = feed_forward(queries)
        return {**self._predict(queries, mask_features), "aux_outputs": predictions}

    def _predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        queries = self.decoder_norm(queries)
        return {"pred_logits": self.class_embed(queries), "pred_masks": self._masks(queries, mask_features)}

    def _masks(self, queries: Tensor, mask_features: Tensor) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)


def _resize(x: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(shape), mode="bilinear", align_corners=False)


def _blocked(logits: Tensor) -> Tensor:
    """Keys outside the mask of each query, bool [B, Q, S]; none if all are outside."""
    blocked = logits.flatten(2).sigmoid() < 0.5
    return blocked & ~blocked.all(dim=-1, keepdim=True)
