"""Isotropic NAT and DiNAT: one resolution throughout, as in a vision transformer.

The models are those of Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143) and Hassani and Shi,
"Dilated Neighborhood Attention Transformer" (arXiv 2209.15001). Their shape is that of ViT (Dosovitskiy et al., arXiv
2010.11929) without class token and position embedding, with a norm after the tokenizer.
"""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY

from .backbone import FromConfig, OneLevelBackbone
from .blocks import NeighborhoodAttention2D
from .classifier import Classifier
from .config import BackboneConfigError
from .one_level import OneLevel, only_level


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
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        rel_pos_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        attention_backend: str = "auto",
        **settings: Any,
    ) -> None:
        """Create the network; `MODEL.DINAT` in config.py describes the settings. Lists have one entry, for one level.

        The further `settings` are those of `OneLevel`.

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
            drop_rate=drop_rate,
            **settings,
        )


class IsotropicClassifier(Classifier, Isotropic):
    """Isotropic NAT or DiNAT as an image classifier."""


@BACKBONE_REGISTRY.register()
class D2IsotropicDiNAT(FromConfig, OneLevelBackbone, Isotropic):
    """Isotropic NAT or DiNAT built from a Detectron2 config (`MODEL.DINAT`, `MODEL.BACKBONE.FREEZE_AT`)."""

    unused_keys = ("KERNEL_SIZES", "OUT_FEATURES", "IMAGE_SIZE")
