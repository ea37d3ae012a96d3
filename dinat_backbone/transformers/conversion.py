"""The published NAT and DiNAT classifiers as models of the transformers library, and back; logits stay equal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dinat_common.errors import UserError
from dinat_common.transformers_names import DINAT_NAMES, dinat_from_transformers
from dinat_common.weights import StateDict

from ..dinat import DiNATClassifier
from ..variants import VARIANTS, Variant, create_classifier
from .configuration import DinatConfig, NatConfig, NeighborhoodConfig
from .modeling import DinatForImageClassification, NatForImageClassification, NeighborhoodForImageClassification

_MODELS: dict[type[NeighborhoodConfig], type[NeighborhoodForImageClassification]] = {
    NatConfig: NatForImageClassification,
    DinatConfig: DinatForImageClassification,
}
# Names that transformers has for the settings of our networks.
_FIELDS = {
    "layer_scale": "layer_scale_init_value",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "in_channels": "num_channels",
}
_BICUBIC = 3  # number of Pillow's filter


class NotInTransformersError(UserError):
    """A classifier, or a setting of it, which the transformers library does not have."""


def names() -> list[str]:
    """Names of the published classifiers that exist in transformers."""
    return [name for name, variant in VARIANTS.items() if variant.model is DiNATClassifier]


def classifier_config(name: str, num_labels: int | None = None, **fields: Any) -> NeighborhoodConfig:
    """Configuration of a published classifier.

    Args:
        name: Name among `names()`.
        num_labels: Number of classes, by default the published one.
        fields: Fields of the configuration to add or change, for example `id2label`.

    Raises:
        NotInTransformersError: transformers has no such model.
    """
    variant = _variant(name)
    settings = {_FIELDS.get(key, key): value for key, value in variant.settings.items()}
    config_class = DinatConfig if "dilations" in settings else NatConfig
    settings["num_labels"] = variant.num_classes if num_labels is None else num_labels
    settings["architectures"] = [_MODELS[config_class].__name__]
    return config_class(**settings | fields)


def image_processor(name: str) -> ViTImageProcessor:
    """Image processor with the published evaluation: bicubic resize of the shorter side, center crop, normalization."""
    variant = _variant(name)
    return ViTImageProcessor(
        size={"shortest_edge": int(variant.image_size / variant.crop_pct)},
        do_center_crop=True,
        crop_size={"height": variant.image_size, "width": variant.image_size},
        resample=_BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def to_transformers(state: Mapping[str, torch.Tensor], model_type: str) -> StateDict:
    """Rename the weights of a NAT or DiNAT classifier for `...ForImageClassification`.

    Args:
        state: Weights with published names.
        model_type: "nat" or "dinat".

    Raises:
        CheckpointError: A name is not one of such a classifier.
    """
    renamed = DINAT_NAMES.to_transformers(dict(state))
    head = "classifier."
    return {name if name.startswith(head) else f"{model_type}.{name}": value for name, value in renamed.items()}


def create_model(
    name: str, weights: str | Path | None = None, num_labels: int | None = None, **fields: Any
) -> NeighborhoodForImageClassification:
    """Build a published classifier as a model of transformers, with the weights of a published file.

    Args:
        name: Name among `names()`.
        weights: Path or URL of a published `.pth` or a safetensors file, as `create_classifier` takes it.
        num_labels: Number of classes, by default that of the file or the published one.
        fields: Fields of the configuration to add or change, for example `id2label`.

    Returns:
        Model in evaluation mode, as `from_pretrained` returns it. Its logits equal those of `create_classifier`.

    Raises:
        NotInTransformersError: transformers has no such model.
        CheckpointError: The file can't be used.
    """
    _variant(name)
    native = create_classifier(name, weights, num_labels)
    config = classifier_config(name, native.num_classes, **fields)
    model = _MODELS[type(config)](config)
    model.load_state_dict(to_transformers(native.state_dict(), config.model_type))
    return model.eval()


def to_native(model: NeighborhoodForImageClassification) -> DiNATClassifier:
    """Turn a model of transformers into one of `create_classifier`, whose state dict has the published names.

    Raises:
        NotInTransformersError: A setting of the model has no counterpart.
    """
    config = model.config
    unlike = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    for field, expected in unlike.items():
        if getattr(config, field) != expected:
            raise NotInTransformersError(f"{field} {getattr(config, field)!r}: the authors' network has {expected!r}")
    same = ("embed_dim", "depths", "num_heads", "kernel_size", "mlp_ratio", "qkv_bias", "drop_path_rate")
    settings: dict[str, Any] = {field: getattr(config, field) for field in same}
    settings |= {ours: getattr(config, theirs) for ours, theirs in _FIELDS.items()}
    settings["layer_scale"] = config.layer_scale_init_value or None
    native = DiNATClassifier(
        num_classes=config.num_labels or 0, dilations=getattr(config, "dilations", None) or (), **settings
    )
    native.load_state_dict(dinat_from_transformers(model.state_dict()))
    return native.train(model.training)


def empty_state(config: NeighborhoodConfig) -> StateDict:
    """State dict of a classifier on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return _MODELS[type(config)](config).state_dict()


def recognise(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the published classifiers with the names and shapes of `state`, whatever its number of classes.

    Dilations leave no trace in the weights: a NAT and a DiNAT of the same size are both found.
    """
    head = len(state["head.bias"]) if "head.bias" in state else 0
    shapes = {key: value.shape for key, value in state.items()}
    found = []
    for name in names():
        with torch.device("meta"):
            expected = create_classifier(name, num_classes=head).state_dict()
        if shapes == {key: value.shape for key, value in expected.items()}:
            found.append(name)
    return found


def _variant(name: str) -> Variant:
    if name not in names():
        raise NotInTransformersError(f"{name}: transformers has only the classifiers {', '.join(names())}")
    return VARIANTS[name]
