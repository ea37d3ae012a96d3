"""Isotropic NAT and DiNAT: one resolution throughout, as in a vision transformer.

The models are those of Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143) and Hassani and Shi,
"Dilated Neighborhood Attention Transformer" (arXiv 2209.15001). Their shape is that of ViT (Dosovitskiy et al., arXiv
2010.11929) without class token and position embedding, with a norm after the tokenizer.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from .blocks import (
    Block,
    NeighborhoodAttention2D,
    PatchTokenizer,
    Stage,
    Trunk,
    drop_path_rates,
    freeze,
    initialize,
    run_blocks,
)
from .classifier import Classifier
from .config import BackboneConfigError, build_settings

if TYPE_CHECKING:
    from typing_extensions import Self


class OneLevel(Trunk):
    """A tokenizer and blocks at one resolution, with any kind of attention."""

    def __init__(
        self,
        attentions: Sequence[nn.Module],
        *,
        embed_dim: int,
        in_channels: int,
        patch_size: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_rate: float,
        drop_path_rate: float,
        use_checkpoint: bool,
    ) -> None:
        """Create the network.

        Args:
            attentions: Attention of each block, from [B, H, W, embed_dim] to the same shape.
            embed_dim: Channels.
            in_channels: Channels of the image.
            patch_size: Side of the square of pixels that makes a token.
            mlp_ratio: Hidden width of the MLPs relative to `embed_dim`.
            layer_scale: Initial scale of the residual branches; None means no scale.
            drop_rate: Probability of dropping an entry of a token or of an MLP.
            drop_path_rate: Probability of skipping a residual branch in the last block.
            use_checkpoint: Whether the backward pass recomputes the activations inside blocks.
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


class OneLevelBackbone(OneLevel, Backbone):
    """One map, called res4 at stride 16, normalized by a LayerNorm; each family combines it with its own trunk."""

    def __init__(self, *, freeze_at: int = 0, **settings: Any) -> None:
        """Create the backbone.

        Args:
            freeze_at: Number of frozen stages: 1 is the tokenizer, 2 everything.
            settings: Settings of the trunk.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        super().__init__(**settings)
        stride = self.patch_embed.patch_size
        name = f"res{stride.bit_length() - 1}"
        self._out_features = [name]
        self._out_feature_channels = {name: self.dims[0]}
        self._out_feature_strides = {name: stride}
        self.norm = nn.LayerNorm(self.dims[0])
        self._frozen = freeze([[self.patch_embed, self.pos_drop], [self.layers, self.norm]], freeze_at)

    def train(self, mode: bool = True) -> "Self":
        """Set the mode; frozen stages stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Map a normalized image [B, 3, H, W] to {"res4": [B, C, H/16, W/16]}, sides rounded up."""
        (output,) = self.level_maps(image)
        return {self._out_features[0]: self.norm(output).permute(0, 3, 1, 2).contiguous()}


class Isotropic(OneLevel):
    """Isotropic NAT or DiNAT up to its last block."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] = (),
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        rel_pos_bias: bool = True,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        in_channels: int = 3,
        attention_backend: str = "auto",
        use_checkpoint: bool = False,
    ) -> None:
        """Create the network; `MODEL.DINAT` in config.py describes the settings. Lists have one entry, for one level.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        depth, heads = only_level("depths", depths), only_level("num_heads", num_heads)
        dilations = dilations or [[1] * depth]
        if [len(level) for level in dilations] != [depth]:
            raise BackboneConfigError(f"dilations must be one list of {depth} entries, got {list(dilations)}")
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale, "rel_pos_bias": rel_pos_bias}
        attention |= {"attn_drop": attn_drop_rate, "proj_drop": drop_rate, "backend": attention_backend}
        super().__init__(
            [NeighborhoodAttention2D(embed_dim, heads, kernel_size, d, **attention) for d in dilations[0]],
            embed_dim=embed_dim,
            in_channels=in_channels,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            use_checkpoint=use_checkpoint,
        )


def only_level(name: str, entries: Sequence[int]) -> int:
    """The entry of a setting that has one per level, where there is one level.

    Raises:
        BackboneConfigError: There is not exactly one entry.
    """
    if len(entries) != 1:
        raise BackboneConfigError(f"{name} must have one entry, for the one resolution, got {list(entries)}")
    return entries[0]


class IsotropicClassifier(Classifier, Isotropic):
    """Isotropic NAT or DiNAT as an image classifier."""


@BACKBONE_REGISTRY.register()
class D2IsotropicDiNAT(OneLevelBackbone, Isotropic):
    """Isotropic NAT or DiNAT built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    @configurable
    def __init__(self, **settings: Any) -> None:
        """See `Isotropic` and `OneLevelBackbone`."""
        super().__init__(**settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Pass each key of `MODEL.DINAT` to the argument with the same name in lower case."""
        return build_settings(cfg, input_shape, unused=("KERNEL_SIZES", "OUT_FEATURES", "IMAGE_SIZE"))
