"""Networks of one resolution, as which isotropic NAT and DiNAT and ViT-rpb are built.

Shapes:
    B: images; H, W: height and width of an image
    Maps are channels last, [B, H/patch_size, W/patch_size, embed_dim], between the tokenizer and the outputs.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from .blocks import Block, PatchTokenizer, Stage, Trunk, drop_path_rates, initialize, run_blocks
from .config import BackboneConfigError


class OneLevel(Trunk):
    """A tokenizer and blocks at one resolution, with any kind of attention."""

    def __init__(
        self,
        attentions: Sequence[nn.Module],
        *,
        embed_dim: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        in_channels: int = 3,
        use_checkpoint: bool = False,
    ) -> None:
        """Create the network; `MODEL.DINAT` in config.py describes the settings.

        There is a block for each of `attentions`, which are modules from [B, H, W, embed_dim] to the same shape.
        """
        super().__init__()
        self.dims = [embed_dim]
        self.use_checkpoint = use_checkpoint
        self.patch_embed = PatchTokenizer(in_channels, embed_dim, patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = drop_path_rates(drop_path_rate, len(attentions))
        self.layers = nn.ModuleList(
            Block(attention, embed_dim, mlp_ratio, drop=drop_rate, drop_path=drop_path, layer_scale=layer_scale)
            for attention, drop_path in zip(attentions, drop_paths, strict=True)
        )
        self.apply(initialize)

    def level_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image [B, 3, H, W] to the one map [B, H/patch_size, W/patch_size, embed_dim]."""
        output = image
        for output in self.stage_maps(image):  # noqa: B007 - the last one
            pass
        yield output

    def set_checkpointing(self, enable: bool) -> None:
        """Choose whether the backward pass recomputes the activations inside blocks instead of keeping them."""
        self.use_checkpoint = enable

    def stages(self) -> list[Stage]:
        """The blocks."""
        stride = self.patch_embed.patch_size
        return [Stage(f"layers.{block}", self.dims[0], stride) for block in range(len(self.layers))]

    def stage_maps(self, image: Tensor) -> Iterator[Tensor]:
        """Map a normalized image [B, 3, H, W] to the outputs of the blocks, without norm.

        Yields:
            Maps [B, H/patch_size, W/patch_size, embed_dim], sides rounded up.
        """
        x = self.pos_drop(self.patch_embed(image))
        for block in self.layers:
            x = run_blocks([block], x, self.use_checkpoint)
            yield x

    def keep_stages(self, count: int) -> None:
        """Remove the blocks after the first `count`."""
        self.layers = self.layers[:count]

    def layer_patterns(self, coarse: bool) -> list[tuple[str, tuple[int, ...] | None]]:
        """One group for each block."""
        return [(r"^layers\.(\d+)", None)]


def only_level(name: str, entries: Sequence[int]) -> int:
    """The entry of a setting that has one per level, where there is one level.

    Raises:
        BackboneConfigError: There is not exactly one entry.
    """
    if len(entries) != 1:
        raise BackboneConfigError(f"{name} must have one entry, for the one resolution, got {list(entries)}")
    return entries[0]
