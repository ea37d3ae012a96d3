"""The three kinds of layer in the masked-attention decoder (Cheng et al., Mask2Former, CVPR 2022, section 3.2.1)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's module (same parameters), whose mask may be shared by the heads instead of copied for each."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:  # type: ignore
        """Attend [B, S, C] from [B, Q, C]; `blocked` bool [B, Q, S] marks keys that a query does not see: [B, Q, C]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = [
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        attended = F.scaled_dot_product_attention(
            *heads,
            attn_mask=None if blocked is None else ~blocked[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _ResidualLayer(nn.Module):
    """Dropout, residual and LayerNorm around a branch; the norm comes after the sum, or before the branch."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def before(self, queries: Tensor) -> Tensor:
        """Input of the branch."""
        return self.norm(queries) if self.pre_norm else queries

    def after(self, queries: Tensor, branch: Tensor) -> Tensor:
        """Add the branch."""
        queries = queries + self.dropout(branch)
        return queries if self.pre_norm else self.norm(queries)

    def _initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class SelfAttentionLayer(_ResidualLayer):
    """Queries attend each other."""

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
    """Queries attend a map, each only inside the mask that it predicted before."""

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
    """Two linear layers with ReLU between."""

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
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
