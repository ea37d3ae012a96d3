"""The masked-attention transformer decoder (Cheng et al., Mask2Former, CVPR 2022, section 3.2).

Shapes:
    B: images; Q: queries; C: hidden_dim; K: classes; H, W: height and width at stride 4; S: positions of one level
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ..build import TRANSFORMER_DECODER_REGISTRY
from .attention import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from .position_encoding import PositionEmbeddingSine


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learnt queries look at one level after the other, each inside its own mask, and predict a class and a mask."""

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
        """Make the decoder; keys of `MODEL.MASK_FORMER` say what the settings mean.

        `num_layers` counts layers proper; predictions are one more, as the learnt queries predict too.
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
            maps: three maps [B, in_channels, h, w], coarse to fine.
            mask_features: [B, mask_dim, H, W].
            aux_outputs: keep all predictions, as losses want them; they are the largest that the model makes.

        Returns:
            `pred_logits` [B, Q, K + 1], the last class being "no object"; `pred_masks` logits [B, Q, H, W]; and
            `aux_outputs`, a list of dicts with the same two of the learnt queries and of all layers but the last (empty
            if they are not kept).
        """
        shapes = [x.shape[-2:] for x in maps]
        positions = [self.position_embedding(x).flatten(2).transpose(1, 2) for x in maps]
        memories = [
            project(x).flatten(2).transpose(1, 2) + level
            for project, x, level in zip(self.input_proj, maps, self.level_embed.weight, strict=True)
        ]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        query_position = self.query_embed.weight
        predictions: list[dict[str, Tensor]] = []
        prediction = self._predict(queries, mask_features)
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % self.NUM_FEATURE_LEVELS
            blocked = _blocked(prediction["pred_masks"], shapes[level])
            queries = cross_attention(queries, memories[level], blocked, positions[level], query_position)
            queries = self_attention(queries, query_position)
            queries = feed_forward(queries)
            if aux_outputs:
                predictions.append(prediction)
            prediction = self._predict(queries, mask_features)
        return {**prediction, "aux_outputs": predictions}

    def _predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        queries = self.decoder_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}


def _blocked(mask_logits: Tensor, shape: Sequence[int]) -> Tensor:
    """Keys outside each query's mask, at a level's resolution: bool [B, Q, S]; none where that would be all of them."""
    logits = F.interpolate(mask_logits.detach().float(), size=tuple(shape), mode="bilinear", align_corners=False)
    blocked = logits.flatten(2).sigmoid() < 0.5
    return blocked & ~blocked.all(dim=-1, keepdim=True)
