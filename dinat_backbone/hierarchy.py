"""Networks of levels at strides 4, 8, 16 and 32, as which NAT, DiNAT and DiNATs are built.

Shapes:
    B: images; H, W: height and width of an image or map; C: channels of a map, embed_dim at the first level
    Maps are channels last, [B, H, W, C], between the tokenizer and the outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from .blocks import (
    WITH_GROUP_BEFORE,
    Block,
    NeighborhoodAttention2D,
    Stage,
    Trunk,
    drop_path_rates,
    initialize,
    run_blocks,
)
from .config import BackboneConfigError

_MOST_LEVELS = 4


@dataclass(frozen=True)
class Parts:
    """What differs between families of the same shape.

    Attributes:
        tokenizer: Function of the input channels and `embed_dim` that makes the module from image to first map.
        downsampler: Function of C that makes the module from [B, H, W, C] to [B, H/2, W/2, 2C].
        levels: Name of the list of levels in published checkpoints.
    """

    tokenizer: Callable[[int, int], nn.Module]
    downsampler: Callable[[int], nn.Module]
    levels: str


class Level(nn.Module):
    """Blocks of one resolution, followed by the step to the next level, except after the last one."""

    def __init__(self, blocks: Sequence[Block], downsample: nn.Module | None, use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def set_checkpointing(self, enable: bool) -> None:
        """Choose whether the backward pass recomputes the activations inside blocks."""
        self.use_checkpoint = enable

    def remove_downsampler(self) -> None:
        """Remove the step to the next level."""
        self.downsample = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, H, W, C] to the output of the level and the input of the next one (the output, after the last)."""
        x = run_blocks(self.blocks, x, self.use_checkpoint)
        return x, x if self.downsample is None else self.downsample(x)


class Hierarchy(Trunk):
    """A tokenizer and up to four levels; each level has half the resolution and twice the channels of the former.

    Attributes:
        parts: Modules of the family.
    """

    parts: ClassVar[Parts]

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
        attention_backend: str = "auto",
        use_checkpoint: bool = False,
    ) -> None:
        """Create the network; `MODEL.DINAT` in config.py describes the settings.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        super().__init__()
        dilations = dilations or [[1] * depth for depth in depths]
        kernel_sizes = kernel_sizes or [kernel_size] * len(depths)
        check_levels(depths, num_heads, kernel_sizes, dilations)
        drop_paths = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.dims = [embed_dim * 2**level for level in range(len(depths))]
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale, "rel_pos_bias": rel_pos_bias}
        attention |= {"attn_drop": attn_drop_rate, "proj_drop": drop_rate, "backend": attention_backend}

        self.patch_embed = self.parts.tokenizer(in_channels, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        levels = nn.ModuleList()
        for level, dim in enumerate(self.dims):
            blocks = [
                Block(
                    NeighborhoodAttention2D(dim, num_heads[level], kernel_sizes[level], dilation, **attention),
                    dim,
                    mlp_ratio,
                    drop=drop_rate,
                    drop_path=next(drop_paths),
                    layer_scale=layer_scale,
                )
                for dilation in dilations[level]
            ]
            downsample = self.parts.downsampler(dim) if level + 1 < len(self.dims) else None
            levels.append(Level(blocks, downsample, use_checkpoint))
        self.add_module(self.parts.levels, levels)
        self.apply(initialize)

    def level_modules(self) -> list[Level]:
        """The levels, from fine to coarse."""
        levels = self.get_submodule(self.parts.levels).children()
        return [level for level in levels if isinstance(level, Level)]

    def level_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image [B, 3, H, W] to the outputs of the levels, before any downsampling and norm.

        Yields:
            Maps [B, H/4, W/4, C], [B, H/8, W/8, 2C], ..., sides rounded up.
        """
        x = self.pos_drop(self.patch_embed(image))
        for level in self.level_modules():
            output, x = level(x)
            yield output

    def set_checkpointing(self, enable: bool) -> None:
        """Choose whether the backward pass recomputes the activations inside blocks instead of keeping them."""
        for level in self.level_modules():
            level.set_checkpointing(enable)

    def stages(self) -> list[Stage]:
        """The levels."""
        return [Stage(f"{self.parts.levels}.{level}", dim, 4 * 2**level) for level, dim in enumerate(self.dims)]

    def keep_stages(self, count: int) -> None:
        """Remove the levels after the first `count`, and the downsampler of the last one that stays."""
        levels = self.level_modules()[:count]
        levels[-1].remove_downsampler()
        self.add_module(self.parts.levels, nn.ModuleList(levels))

    def layer_patterns(self, coarse: bool) -> list[tuple[str, tuple[int, ...] | None]]:
        """One group for each level or block; a downsampler belongs to the block before it."""
        level = rf"^{self.parts.levels}\.(\d+)"
        if coarse:
            return [(level, None)]
        return [(rf"{level}\.blocks\.(\d+)", None), (rf"{level}\.downsample", WITH_GROUP_BEFORE)]


def check_levels(
    depths: Sequence[int],
    num_heads: Sequence[int],
    kernel_sizes: Sequence[int],
    dilations: Sequence[Sequence[int]],
) -> None:
    """Check that the settings of the levels agree with each other.

    Raises:
        BackboneConfigError: They do not; the message names the setting.
    """
    levels = len(depths)
    if not 1 <= levels <= _MOST_LEVELS:
        raise BackboneConfigError(f"depths must list 1 to {_MOST_LEVELS} levels, got {list(depths)}")
    for name, entries in (("num_heads", num_heads), ("kernel_sizes", kernel_sizes)):
        if len(entries) != levels:
            raise BackboneConfigError(f"{name} must have one entry per level ({levels}), got {list(entries)}")
    if [len(level) for level in dilations] != list(depths):
        raise BackboneConfigError(
            f"dilations must have one entry per block: lengths {list(depths)}, got {list(dilations)}"
        )
