"""What all networks of the family are built from: attention, MLP, block, and the rules of their settings.

Shapes:
    B: images; H, W: height and width of a map; C: channels of a map
    Maps are channels last, [B, H, W, C].
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from dinat_common.cpu import map_tokens

from .config import BackboneConfigError
from .ops import check_settings, neighborhood_attention_2d
from .ops.exportable import crop_map, pad_map
from .ops.reference import neighbors


class NeighborhoodAttention2D(nn.Module):
    """Multi-head neighborhood attention over a map (DiNAT, arXiv 2209.15001, section 3).

    Maps smaller than kernel_size * dilation are padded with zeros at the bottom and right before the projection to
    query, key and value, and cropped afterwards, so that padding tokens take part as keys. Published models were
    trained with this padding: an image side of 512 pixels gives 128 rows at the first level, fewer than 11 * 14.
    """

    rpb: nn.Parameter | None

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
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.scale = qk_scale
        self.attn_drop = attn_drop
        self.backend = backend
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.register_parameter("rpb", new_bias_table(num_heads, kernel_size) if rel_pos_bias else None)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, dim] to [B, H, W, dim]."""
        height, width = x.shape[1:3]
        x = pad_to_window(x, self.kernel_size * self.dilation)
        query_key_value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        settings = (self.kernel_size, self.dilation, self.scale, self.backend)
        dropout = self.attn_drop if self.training else 0.0
        x = neighborhood_attention_2d(*query_key_value, self.rpb, *settings, dropout)
        x = crop_to_map(x, height, width).flatten(-2)
        return self.proj_drop(self.proj(x))

    def neighbors(self, size: int) -> Tensor:
        """Positions that each position of an axis attends to: [size, k]. Those from `size` on are padding."""
        return neighbors(max(size, self.kernel_size * self.dilation), self.kernel_size, self.dilation)[0][:size]

    def extra_repr(self) -> str:
        """Return the settings that the submodules do not show."""
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"


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
        return map_tokens(lambda tokens: self.drop(self.fc2(self.drop(self.act(self.fc1(tokens))))), x)


class Block(nn.Module):
    """Attention and an MLP, each preceded by a LayerNorm and with a residual connection.

    `gamma1` and `gamma2` scale the channels of the two branches; they are None without layer scale (CaiT, arXiv
    2103.17239, section 2).
    """

    gamma1: Tensor | None
    gamma2: Tensor | None

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        mlp_ratio: float,
        *,
        drop: float,
        drop_path: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
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


class PatchTokenizer(nn.Module):
    """A convolution that makes a token of each patch of the image, and a LayerNorm.

    Images are padded with zeros at the bottom and right to whole patches; zero is the mean color after normalization.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/patch_size, W/patch_size, dim], sides rounded up."""
        image = pad_to_multiple(image, self.patch_size)
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Pad maps [..., H, W] with zeros at the bottom and right until both sides are multiples of `factor`.

    In an export with symbolic sizes, sides that are known to be multiples add nothing to the graph.
    """
    below, right = (-side % factor for side in x.shape[-2:])
    if all(map(_is_zero, (below, right))):
        return x
    return F.pad(x, (0, right, 0, below))


def _is_zero(size: int | torch.SymInt) -> bool:
    if isinstance(size, int):
        return size == 0
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, rarely needed

    return statically_known_true(size == 0)


@dataclass(frozen=True)
class Stage:
    """Where a network gives out a map.

    Attributes:
        module: Name of the module that ends in the map.
        channels: Channels of the map.
        stride: Pixels of the image per position of the map.
    """

    module: str
    channels: int
    stride: int


# timm's mark of weights that belong to the group before them.
WITH_GROUP_BEFORE = (99999,)


class Trunk(nn.Module):
    """What lies between an image and the last norm; the base of all networks of the family.

    Attributes:
        dims: Channels of each output.
    """

    dims: list[int]

    def level_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image [B, 3, H, W] to the outputs of the levels [B, H', W', dims[level]], without norm."""
        raise NotImplementedError

    def set_checkpointing(self, enable: bool) -> None:
        """Choose whether the backward pass recomputes the activations inside blocks instead of keeping them."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The stages of `stage_maps`."""
        raise NotImplementedError

    def stage_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image to the outputs of the stages: of each level, or of each block if there is one level.

        Yields:
            Maps [B, H / stride, W / stride, channels] without norm.
        """
        return self.level_maps(image)

    def keep_stages(self, count: int) -> None:
        """Remove the stages after the first `count`, and what leads to them."""
        raise NotImplementedError

    def layer_patterns(self, coarse: bool) -> list[tuple[str, tuple[int, ...] | None]]:
        """Patterns that sort the weights by depth, in the form of timm's `group_matcher`.

        Args:
            coarse: Whether a level is one group instead of each block.

        Returns:
            Regular expressions whose groups are numbers in the order of depth, and what to append to these numbers.
        """
        raise NotImplementedError


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, use_checkpoint: bool) -> Tensor:
    """Run blocks one after the other.

    Args:
        blocks: Blocks from [B, H, W, C] to the same shape.
        x: Map [B, H, W, C].
        use_checkpoint: Whether the backward pass recomputes the activations inside each block. Frozen blocks keep none,
            whereas checkpoints would keep their inputs.

    Returns:
        Map [B, H, W, C].
    """
    for block in blocks:
        trainable = use_checkpoint and torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters())
        x = checkpoint(block, x, use_reentrant=False) if trainable else block(x)
    return x


def pad_to_window(x: Tensor, smallest: int) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right to at least `smallest` rows and columns."""
    height, width = x.shape[1:3]
    if isinstance(height, int) and isinstance(width, int):
        below, right = max(0, smallest - height), max(0, smallest - width)
        # Padding by nothing would copy the map.
        return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x
    return pad_map(x, smallest)  # symbolic sizes, in an export


def crop_to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad_to_window`: the upper left `height` rows and `width` columns of a map [B, H, W, ...]."""
    if isinstance(height, int) and isinstance(width, int):
        return x[:, :height, :width]
    return crop_map(x, height, width)  # symbolic sizes, in an export


def drop_path_rates(last: float, count: int) -> list[float]:
    """Probabilities of skipping the branches of each of `count` blocks, rising linearly from 0 to `last`."""
    step = last / max(1, count - 1)
    return [index * step for index in range(count)]


def alternate_dilations(depths: Iterable[int], dilations: Iterable[int]) -> list[list[int]]:
    """Dilation of each block of each level, as published: `dilations[level]` in odd blocks and 1 in even ones.

    Levels beyond the end of the shorter argument are left out; `check_levels` refuses them.
    """
    levels = zip(depths, dilations, strict=False)
    return [[dilation if block % 2 else 1 for block in range(depth)] for depth, dilation in levels]


def check_heads(dim: int, num_heads: int) -> None:
    """Check that the channels can be shared among the heads.

    Raises:
        BackboneConfigError: `dim` is not a multiple of `num_heads`.
    """
    if dim % num_heads:
        raise BackboneConfigError(f"dim {dim} is not a multiple of num_heads {num_heads}")


def new_bias_table(num_heads: int, size: int) -> nn.Parameter:
    """New relative position biases of windows of `size` positions per axis, [heads, 2 size - 1, 2 size - 1]."""
    table = nn.Parameter(torch.zeros(num_heads, 2 * size - 1, 2 * size - 1))
    nn.init.trunc_normal_(table, std=0.02)
    return table


def initialize(module: nn.Module) -> None:
    """Initialize the linear layers as published: truncated normal weights (0.02) and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
