"""NAT and DiNAT as models of the transformers library, with the names of its published checkpoints.

Their outputs are those that the documentation of transformers describes.

Shapes:
    B: images; H, W: height and width of an image or map; C: channels of a map
    Maps are channels last, [B, H, W, C], in the network and in `hidden_states`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ModelOutput
from transformers.utils.generic import can_return_tuple

from ..config import BackboneConfigError
from .configuration import DinatConfig, NatConfig, NeighborhoodConfig
from .network import Embeddings, Maps, NeighborhoodEncoder, NeighborhoodLayer, NeighborhoodSelfAttention


@dataclass
class NeighborhoodModelOutput(ModelOutput):
    """Output of `DinatModel` and `NatModel`.

    Attributes:
        last_hidden_state: Last map after the last norm, [B, H, W, C].
        pooler_output: Mean of `last_hidden_state` over the positions, [B, C].
        hidden_states: Map of the tokenizer and the output of each level, downsampled except after the last level and
            before the last norm, [B, H, W, C]. Only if asked for.
        attentions: Always None, since the attention matrix is never built.
        reshaped_hidden_states: The hidden states as [B, C, H, W].
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Maps | None = None
    attentions: Maps | None = None
    reshaped_hidden_states: Maps | None = None


@dataclass
class NeighborhoodClassifierOutput(ModelOutput):
    """Output of `DinatForImageClassification` and `NatForImageClassification`.

    Attributes:
        loss: Classification loss (regression loss for a single label), if labels were given.
        logits: Scores before the softmax, [B, num_labels].
        hidden_states: Hidden states of the model, see `NeighborhoodModelOutput`.
        attentions: Always None, since the attention matrix is never built.
        reshaped_hidden_states: The hidden states as [B, C, H, W].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Maps | None = None
    attentions: Maps | None = None
    reshaped_hidden_states: Maps | None = None


class NeighborhoodPreTrainedModel(PreTrainedModel):
    """What all models of NAT and DiNAT have in common: configuration, initial weights and gradient checkpointing."""

    config: NeighborhoodConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NeighborhoodLayer"]  # noqa: RUF012 - as the base class declares it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NeighborhoodSelfAttention):
            init.trunc_normal_(module.rpb, std=0.02)
        elif isinstance(module, NeighborhoodLayer) and module.layer_scale_parameters is not None:
            init.constant_(module.layer_scale_parameters, self.config.layer_scale_init_value)

    def _wants_hidden_states(self, output_attentions: bool | None, output_hidden_states: bool | None) -> bool:
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise BackboneConfigError(
                "output_attentions=True: neighborhood attention never builds the attention matrix; leave it False"
            )
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)


class NeighborhoodTrunk(NeighborhoodPreTrainedModel):
    """The tokenizer and the levels, which models and backbones share."""

    def __init__(self, config: NeighborhoodConfig) -> None:
        """Create the modules with random weights."""
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = NeighborhoodEncoder(config)

    def get_input_embeddings(self) -> nn.Module:
        """The convolutions of the tokenizer."""
        return self.embeddings.patch_embeddings


class NeighborhoodModel(NeighborhoodTrunk):
    """NAT or DiNAT without a head: the last map and its mean."""

    def __init__(self, config: NeighborhoodConfig, add_pooling_layer: bool = True) -> None:
        """Create the model with random weights.

        Args:
            config: Configuration.
            add_pooling_layer: Whether the output has `pooler_output`.
        """
        super().__init__(config)
        self.add_pooling_layer = add_pooling_layer
        self.num_features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.layernorm = nn.LayerNorm(self.num_features, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> NeighborhoodModelOutput:
        """Compute the last map.

        Args:
            pixel_values: Normalized images [B, 3, H, W].
            output_attentions: Not supported; has to be false.
            output_hidden_states: Whether to return the hidden states.

        Returns:
            `NeighborhoodModelOutput`, or a tuple of its values that are not None with `return_dict=False`.

        Raises:
            BackboneConfigError: `output_attentions` is true.
        """
        keep = self._wants_hidden_states(output_attentions, output_hidden_states)
        _, states = self.encoder(self.embeddings(pixel_values))
        last = self.layernorm(states[-1])
        return NeighborhoodModelOutput(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(1, 2)) if self.add_pooling_layer else None,
            hidden_states=states if keep else None,
            reshaped_hidden_states=_channels_first(states) if keep else None,
        )


class NeighborhoodForImageClassification(NeighborhoodPreTrainedModel):
    """NAT or DiNAT with a linear layer on the mean of the last map.

    Attributes:
        model_class: Class of the model without the linear layer, which is stored under `base_model_prefix`.
    """

    model_class: ClassVar[type[NeighborhoodModel]]
    accepts_loss_kwargs = False

    def __init__(self, config: NeighborhoodConfig) -> None:
        """Create the model with random weights; with `num_labels` 0, it has no linear layer."""
        super().__init__(config)
        self.num_labels = config.num_labels
        model = self.model_class(config)
        self.add_module(self.base_model_prefix, model)
        self.classifier = nn.Linear(model.num_features, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> NeighborhoodClassifierOutput:
        """Compute the logits, and a loss if labels are given.

        Args:
            pixel_values: Normalized images [B, 3, H, W].
            labels: Class of each image, [B]; several classes per image are [B, num_labels]. `config.problem_type`
                chooses the loss, as for all classifiers of transformers.
            output_attentions: Not supported; has to be false.
            output_hidden_states: Whether to return the hidden states.

        Returns:
            `NeighborhoodClassifierOutput`, or a tuple of its values that are not None with `return_dict=False`.

        Raises:
            BackboneConfigError: `output_attentions` is true.
        """
        outputs = self.base_model(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return NeighborhoodClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
        )


class NeighborhoodBackbone(BackboneMixin, NeighborhoodTrunk):
    """NAT or DiNAT as a backbone: the normalized maps of the stages in `config.out_features`, [B, C, H, W]."""

    has_attentions = False

    def __init__(self, config: NeighborhoodConfig) -> None:
        """Create the backbone with random weights."""
        super().__init__(config)
        levels = [config.embed_dim * 2**level for level in range(len(config.depths))]
        self.num_features = [config.embed_dim, *levels]
        channels = zip(self.out_features, self.channels, strict=True)
        self.hidden_states_norms = nn.ModuleDict({stage: nn.LayerNorm(dim) for stage, dim in channels})
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """Compute the maps of the stages.

        Args:
            pixel_values: Normalized images [B, 3, H, W].
            output_hidden_states: Whether to return the maps of the tokenizer and of all levels without norm and before
                downsampling, [B, H, W, C].
            output_attentions: Not supported; has to be false.

        Returns:
            `feature_maps`, one per stage in `config.out_features`, and `hidden_states`; a tuple of those that are not
            None with `return_dict=False`.

        Raises:
            BackboneConfigError: `output_attentions` is true.
        """
        keep = self._wants_hidden_states(output_attentions, output_hidden_states)
        stages, _ = self.encoder(self.embeddings(pixel_values))
        maps = dict(zip(self.stage_names, stages, strict=True))
        normalized = tuple(self.hidden_states_norms[stage](maps[stage]) for stage in self.out_features)
        # transformers declares a tuple of one map.
        feature_maps: Any = _channels_first(normalized)
        return BackboneOutput(feature_maps=feature_maps, hidden_states=stages if keep else None)


# The name of the base class in transformers.
DinatPreTrainedModel = NeighborhoodPreTrainedModel


class _Nat:
    config_class = NatConfig
    base_model_prefix = NatConfig.model_type


class _Dinat:
    config_class = DinatConfig
    base_model_prefix = DinatConfig.model_type


class NatModel(_Nat, NeighborhoodModel):
    """NAT without a head."""


class NatForImageClassification(_Nat, NeighborhoodForImageClassification):
    """NAT as an image classifier."""

    model_class = NatModel


class NatBackbone(_Nat, NeighborhoodBackbone):
    """NAT as a backbone."""


class DinatModel(_Dinat, NeighborhoodModel):
    """DiNAT without a head."""


class DinatForImageClassification(_Dinat, NeighborhoodForImageClassification):
    """DiNAT as an image classifier."""

    model_class = DinatModel


class DinatBackbone(_Dinat, NeighborhoodBackbone):
    """DiNAT as a backbone."""


def _channels_first(maps: Maps) -> Maps:
    return tuple(x.permute(0, 3, 1, 2).contiguous() for x in maps)
