"""Detectron2 backbones around the networks of the family: normalized maps, frozen stages, construction from a config.

Shapes:
    B: images; H, W: height and width of an image; C: embed_dim of the network
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinat_common.cpu import channels_first

from .config import BackboneConfigError, build_settings
from .hierarchy import Hierarchy
from .one_level import OneLevel

if TYPE_CHECKING:
    from typing_extensions import Self


class FreezableBackbone(Backbone):
    """A backbone whose first stages can be frozen, as Detectron2's `FREEZE_AT` counts them."""

    _frozen: Sequence[nn.Module] = ()

    def freeze(self, stages: Sequence[Sequence[nn.Module]], count: int) -> None:
        """Turn off the gradients of the first `count` stages, which also stay in evaluation mode.

        Args:
            stages: Modules of each stage; the first is the tokenizer.
            count: Number of stages to freeze.

        Raises:
            BackboneConfigError: There are not so many stages.
        """
        if not 0 <= count <= len(stages):
            raise BackboneConfigError(f"freeze_at must be from 0 (nothing) to {len(stages)} (everything), got {count}")
        self._frozen = [module for stage in stages[:count] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Self":
        """Set the mode; frozen stages stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class HierarchicalBackbone(Hierarchy, FreezableBackbone):
    """Levels whose outputs are normalized by a LayerNorm each, `norm0` to `norm3`."""

    FEATURES = ("res2", "res3", "res4", "res5")

    def __init__(self, *, out_features: Sequence[str] = FEATURES, freeze_at: int = 0, **settings: Any) -> None:
        """Create the backbone.

        Args:
            out_features: Outputs among res2 to res5, the maps of strides 4, 8, 16 and 32.
            freeze_at: Number of frozen stages, counted as in Detectron2's ResNet: 1 freezes the tokenizer, 2 also the
                first level, up to 5.
            settings: Settings of `Hierarchy`.

        Raises:
            BackboneConfigError: Settings contradict each other; the message names them.
        """
        super().__init__(**settings)
        features = self.FEATURES[: len(self.dims)]
        if set(out_features) - set(features) or not out_features:
            raise BackboneConfigError(f"out_features must be among {features}, got {list(out_features)}")
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(features, self.dims, strict=True))
        self._out_feature_strides = {name: 4 * 2**level for level, name in enumerate(features)}
        stages: list[list[nn.Module]] = [[self.patch_embed, self.pos_drop]]
        for level, (name, module) in enumerate(zip(features, self.level_modules(), strict=True)):
            stages.append([module])
            if name in out_features:
                norm = nn.LayerNorm(self.dims[level])
                self.add_module(f"norm{level}", norm)
                stages[-1].append(norm)
        self.freeze(stages, freeze_at)

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Map a normalized image [B, 3, H, W] to {"res2": [B, C, H/4, W/4], ..., "res5": [B, 8C, H/32, W/32]}.

        Sides need not be multiples of 32; they are rounded up at each step.
        """
        outputs = {}
        for level, (name, output) in enumerate(zip(self.FEATURES, self.level_maps(image), strict=False)):
            if name in self._out_features:
                norm = self.get_submodule(f"norm{level}")
                outputs[name] = channels_first(norm(output))
        return outputs


class OneLevelBackbone(OneLevel, FreezableBackbone):
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
        self.freeze([[self.patch_embed, self.pos_drop], [self.layers, self.norm]], freeze_at)

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Map a normalized image [B, 3, H, W] to {"res4": [B, C, H/16, W/16]}, sides rounded up."""
        (output,) = self.level_maps(image)
        return {self._out_features[0]: channels_first(self.norm(output))}


class FromConfig(Backbone):
    """The construction of a backbone from a config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`).

    It comes before the backbone among the bases of a class in Detectron2's registry.

    Attributes:
        unused_keys: Keys of `MODEL.DINAT` that the backbone does not have.
    """

    unused_keys: ClassVar[tuple[str, ...]]

    @configurable
    def __init__(self, **settings: Any) -> None:
        """Create the backbone from a config and the shape of the image, or from the settings of the other base."""
        super().__init__(**settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Pass each key of `MODEL.DINAT` to the argument with the same name in lower case."""
        return build_settings(cfg, input_shape, cls.unused_keys)
