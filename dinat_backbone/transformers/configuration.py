"""Configurations of NAT and DiNAT in the transformers library, with the fields of the published `config.json`."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..blocks import alternate_dilations

# Dilation of the odd blocks of each level: with a kernel of 7, they reach over the whole map of a 224-pixel image.
_DILATIONS = (8, 4, 2, 1)


class NeighborhoodConfig(BackboneConfigMixin, PreTrainedConfig):
    """What the configurations of NAT and DiNAT have in common.

    Attributes:
        patch_size: Stride of the tokenizer in pixels; 4 is the only one.
        num_channels: Channels of the images.
        embed_dim: Channels of the first level; each further level has twice as many.
        depths: Number of blocks of each level.
        num_heads: Number of attention heads of each level.
        kernel_size: Neighbors per axis.
        mlp_ratio: Hidden width of the MLPs relative to the width of their level.
        qkv_bias: Whether the projections to query, key and value have a bias.
        hidden_dropout_prob: Dropout after the tokenizer, the attention and the MLPs.
        attention_probs_dropout_prob: Dropout of the attention.
        drop_path_rate: Probability of skipping a residual branch in the last block; it rises linearly from 0.
        hidden_act: Name of the activation in the MLPs.
        initializer_range: Standard deviation of the initial weights of linear layers and convolutions.
        layer_norm_eps: Epsilon of the norms in the blocks and of the last norm; the other norms have 1e-5.
        layer_scale_init_value: Initial value of the learned scale of each residual branch; 0 means no scale.
        out_features: Stages whose maps a backbone returns, among stem and stage1 to stage4. The default is the last.
        out_indices: The same as numbers, counted from 0 for stem.
        stage_names: Names of the stages.
        hidden_size: Channels of the last level.
        num_layers: Number of levels.
    """

    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}  # noqa: RUF012 - a field

    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 64
    depths: Sequence[int] = (3, 4, 6, 5)
    num_heads: Sequence[int] = (2, 4, 8, 16)
    kernel_size: int = 7
    mlp_ratio: float = 3.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    layer_scale_init_value: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive what follows from the other fields; values for it in a file are not used."""
        self.num_layers = len(self.depths)
        self.hidden_size = int(self.embed_dim * 2 ** (self.num_layers - 1))
        self.stage_names = ["stem", *(f"stage{level}" for level in range(1, self.num_layers + 1))]
        for name in ("num_layers", "hidden_size", "stage_names"):
            kwargs.pop(name, None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class NatConfig(NeighborhoodConfig):
    """Configuration of NAT (arXiv 2204.07143); the defaults are NAT-Mini."""

    model_type = "nat"


class DinatConfig(NeighborhoodConfig):
    """Configuration of DiNAT (arXiv 2209.15001); the defaults are DiNAT-Mini.

    Attributes:
        dilations: Dilation of each block of each level. By default, those of odd blocks are 8, 4, 2 and 1 at the four
            levels, as published for images of 224 pixels; those of even blocks are 1.
    """

    model_type = "dinat"

    dilations: Sequence[Sequence[int]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the default dilations."""
        if self.dilations is None:
            self.dilations = alternate_dilations(self.depths, _DILATIONS)
        super().__post_init__(**kwargs)
