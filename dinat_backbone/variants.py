"""The 25 published image classifiers by name, and the loading of their weights."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from dinat_common.download import fetch, is_url
from dinat_common.errors import UserError
from dinat_common.files import user_path
from dinat_common.weights import CheckpointMismatchError, read_checkpoint

from .blocks import alternate_dilations
from .classifier import Classifier
from .dinat import DiNATClassifier
from .dinat_s import DiNATsClassifier
from .isotropic import IsotropicClassifier
from .vit_rpb import ViTRpbClassifier

_NAMES_SHOWN = 6

_logger = logging.getLogger(__name__)


class UnknownModelError(UserError):
    """A name that is not among the published classifiers."""


@dataclass(frozen=True)
class Variant:
    """A published classifier.

    Attributes:
        model: Class of the network.
        settings: Arguments of the class.
        num_classes: Classes that it was trained for: ImageNet-1K's or ImageNet-22K's.
        image_size: Side of the square images that it is evaluated on, in pixels.
        crop_pct: Part of the shorter side of a resized image that the crop of `image_size` pixels keeps.
    """

    model: type[Classifier]
    settings: Mapping[str, Any]
    num_classes: int = 1000
    image_size: int = 224
    crop_pct: float = 0.875


_22K: dict[str, Any] = {"num_classes": 21841}
_384: dict[str, Any] = {"image_size": 384, "crop_pct": 1.0}
_SCALED: dict[str, Any] = {"layer_scale": 1e-5}
# Kernel * dilation fills the maps of the levels: 56, 28, 14 and 7 positions at 224 pixels; 96, 48, 24 and 12 at 384.
_AT_224, _AT_384 = (8, 4, 2, 1), (13, 6, 3, 1)


def _shape(embed_dim: int, depths: Sequence[int], heads: int, mlp_ratio: float) -> dict[str, Any]:
    """Sizes of a network with `heads` attention heads at its first level."""
    num_heads = [heads * 2**level for level in range(len(depths))]
    return {"embed_dim": embed_dim, "depths": list(depths), "num_heads": num_heads, "mlp_ratio": mlp_ratio}


_MINI, _TINY = _shape(64, (3, 4, 6, 5), 2, 3.0), _shape(64, (3, 4, 18, 5), 2, 3.0)
_SMALL, _BASE = _shape(96, (3, 4, 18, 5), 3, 2.0), _shape(128, (3, 4, 18, 5), 4, 2.0)
_LARGE = _shape(192, (3, 4, 18, 5), 6, 2.0)
_S_TINY, _S_SMALL = _shape(96, (2, 2, 6, 2), 3, 4.0), _shape(96, (2, 2, 18, 2), 3, 4.0)
_S_BASE, _S_LARGE = _shape(128, (2, 2, 18, 2), 4, 4.0), _shape(192, (2, 2, 18, 2), 6, 4.0)
_ISO_SMALL, _ISO_BASE = _shape(384, (12,), 12, 4.0), _shape(768, (12,), 24, 4.0)


def _variant(
    model: type[Classifier],
    shape: Mapping[str, Any],
    drop_path_rate: float,
    dilations: Sequence[int] = (),
    evaluation: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Variant:
    """Make a variant whose odd blocks have the dilation of their level."""
    if dilations:
        settings["dilations"] = alternate_dilations(shape["depths"], dilations)
    return Variant(model, {**shape, "drop_path_rate": drop_path_rate, **settings}, **evaluation)


VARIANTS: Mapping[str, Variant] = {
    "nat_mini": _variant(DiNATClassifier, _MINI, 0.2),
    "nat_tiny": _variant(DiNATClassifier, _TINY, 0.2),
    "nat_small": _variant(DiNATClassifier, _SMALL, 0.3, **_SCALED),
    "nat_base": _variant(DiNATClassifier, _BASE, 0.5, **_SCALED),
    "dinat_mini": _variant(DiNATClassifier, _MINI, 0.2, _AT_224),
    "dinat_tiny": _variant(DiNATClassifier, _TINY, 0.2, _AT_224),
    "dinat_small": _variant(DiNATClassifier, _SMALL, 0.3, _AT_224),
    "dinat_base": _variant(DiNATClassifier, _BASE, 0.5, _AT_224, **_SCALED),
    "dinat_large": _variant(DiNATClassifier, _LARGE, 0.35, _AT_224),
    "dinat_large_384": _variant(DiNATClassifier, _LARGE, 0.35, _AT_384, _384),
    "dinat_large_384_11x11": _variant(DiNATClassifier, _LARGE, 0.35, _AT_224, _384, kernel_size=11),
    "dinat_large_21k": _variant(DiNATClassifier, _LARGE, 0.2, _AT_224, _22K),
    "dinat_large_21k_11x11": _variant(DiNATClassifier, _LARGE, 0.2, _AT_224, _22K, kernel_size=11),
    "dinat_s_tiny": _variant(DiNATsClassifier, _S_TINY, 0.2, _AT_224),
    "dinat_s_small": _variant(DiNATsClassifier, _S_SMALL, 0.3, _AT_224),
    "dinat_s_base": _variant(DiNATsClassifier, _S_BASE, 0.5, _AT_224),
    "dinat_s_large": _variant(DiNATsClassifier, _S_LARGE, 0.35, _AT_224),
    "dinat_s_large_384": _variant(DiNATsClassifier, _S_LARGE, 0.35, _AT_384, _384),
    "dinat_s_large_21k": _variant(DiNATsClassifier, _S_LARGE, 0.2, _AT_224, _22K),
    "nat_isotropic_small": _variant(IsotropicClassifier, _ISO_SMALL, 0.1),
    "nat_isotropic_base": _variant(IsotropicClassifier, _ISO_BASE, 0.4),
    "dinat_isotropic_small": _variant(IsotropicClassifier, _ISO_SMALL, 0.1, (2,)),
    "dinat_isotropic_base": _variant(IsotropicClassifier, _ISO_BASE, 0.4, (2,)),
    "vitrpb_small": _variant(ViTRpbClassifier, _ISO_SMALL, 0.1),
    "vitrpb_base": _variant(ViTRpbClassifier, _ISO_BASE, 0.4),
}


def create_classifier(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    *,
    allow_pickle: bool = False,
    **settings: Any,
) -> Classifier:
    """Build one of the 25 published image classifiers of the NAT and DiNAT papers.

    Args:
        name: Key of `VARIANTS`, for example dinat_mini, nat_base, dinat_s_tiny, dinat_isotropic_small or vitrpb_small.
        weights: Path or URL (see `dinat_common.download.fetch`) of a published `.pth`, a safetensors file, or a
            checkpoint of `train_net.py`. Without it the weights are random.
        num_classes: Number of classes; 0 for pooled features instead of logits. By default that of the file, or the
            published one without a file. If the file has another number, the last layer stays random.
        allow_pickle: Whether `weights` may be a `.pkl`, which can execute arbitrary code.
        settings: Settings of the network to change, for example `drop_path_rate` or `dilations`; see `Hierarchy`.

    Returns:
        Model in training mode, from normalized images [B, 3, H, W] to logits [B, num_classes]. Its state dict has the
        published names.

    Raises:
        UnknownModelError: There is no such name.
        BackboneConfigError: Settings contradict each other.
        CheckpointError: The file can't be used; the message lists the names and shapes that do not fit.
    """
    if name not in VARIANTS:
        raise UnknownModelError(f"unknown classifier {name!r}, expected one of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    if weights is None:
        return _build(variant, num_classes, settings)
    path = str(fetch(str(weights)) if is_url(str(weights)) else user_path(weights))
    state = published_names(read_checkpoint(path, allow_pickle=allow_pickle)["model"])
    in_file = len(state["head.bias"]) if "head.bias" in state else None
    model = _build(variant, in_file if num_classes is None else num_classes, settings)
    kept: Mapping[str, Tensor] = {}
    if model.num_classes != in_file:
        kept = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        _logger.warning(
            "%s has %s, the model has %d: the last layer starts from random weights",
            path,
            "no class head" if in_file is None else f"{in_file} classes",
            model.num_classes,
        )
    _check_names(path, name, {**state, **kept}, model.state_dict())
    model.load_state_dict({**state, **kept})
    return model


def _build(variant: Variant, num_classes: int | None, settings: Mapping[str, Any]) -> Classifier:
    classes = variant.num_classes if num_classes is None else num_classes
    return variant.model(num_classes=classes, **{**variant.settings, **settings})


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a published classifier for the weights of a file.

    Args:
        state: State dict of a classifier. Checkpoints of `train_net.py` have the prefix `backbone.` before all but the
            head, and the last norm of a network with levels is called `norm` and the number of its level.

    Returns:
        The same weights under their published names.
    """
    prefix = "backbone."
    if not any(key.startswith(prefix) for key in state):
        return dict(state)
    names = {f"{prefix}norm{level}.{part}": f"norm.{part}" for level in range(4) for part in ("weight", "bias")}
    buffers = ("pixel_mean", "pixel_std")
    return {names.get(key, key.removeprefix(prefix)): value for key, value in state.items() if key not in buffers}


def _check_names(path: str, name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    found, wanted = ({key: tuple(value.shape) for key, value in tensors.items()} for tensors in (state, expected))
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is not part of the model" for key in found if key not in wanted]
    wrong += [
        f"{key} is {found[key]}, not {wanted[key]}" for key in wanted if found.get(key, wanted[key]) != wanted[key]
    ]
    if wrong:
        more = f"; and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
        shown = "; ".join(wrong[:_NAMES_SHOWN])
        raise CheckpointMismatchError(f"{path} does not hold the weights of {name}: {shown}{more}")
