"""The 25 published classifiers for the timm library; importing this registers them under their names.

`timm.create_model("dinat_mini", checkpoint_path=...)` then builds what `create_classifier` builds. timm downloads no
weights for them: pass a published file as `checkpoint_path`, or as `pretrained_cfg_overlay={"file": ...}` with
`pretrained=True`, which also adapts another number of classes or of input channels.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dinat_common.errors import MissingPackageError

from .classifier import Classifier
from .config import BackboneConfigError
from .hierarchy import Hierarchy
from .variants import VARIANTS, create_classifier
from .vit_rpb import ViTRpb

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import FeatureGetterNet
except ImportError as _error:
    raise MissingPackageError("dinat_backbone.timm", "timm", _error) from _error

__all__: list[str] = []

_NAT, _DINAT = "arXiv:2204.07143", "arXiv:2209.15001"
_LAST_BLOCKS = 3


def _default_cfg(name: str) -> dict[str, Any]:
    """What timm calls the pretrained configuration of a model: its input, and names of its first and last layer."""
    variant = VARIANTS[name]
    levels = issubclass(variant.model, Hierarchy)
    fixed = issubclass(variant.model, ViTRpb)
    side = variant.image_size // (32 if levels else 16)
    two_convolutions = levels and not name.startswith("dinat_s_")
    return {
        "input_size": (3, variant.image_size, variant.image_size),
        "fixed_input_size": fixed,
        "pool_size": (side, side),
        "crop_pct": variant.crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": variant.num_classes,
        "first_conv": "patch_embed.proj.0" if two_convolutions else "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        "paper_ids": _NAT if name.startswith("nat_") else _DINAT,
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name) for name in VARIANTS})


class ClassifierFeatures(FeatureGetterNet):
    """timm's feature extractor around a classifier, which also takes the published weights of the whole classifier."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights with published names, or with those of this module.

        Args:
            state_dict: Weights. Of those with published names, the ones of removed parts are left out.
            strict: Whether all other names have to fit.
            assign: Whether the tensors replace the parameters.

        Returns:
            Names that are missing and unexpected.
        """
        if not any(name.startswith("model.") for name in state_dict):
            gone: Any = self.model.pruned
            state_dict = {f"model.{name}": value for name, value in state_dict.items() if not name.startswith(gone)}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class _Entrypoint:
    """The function that builds a model, as timm's registry knows it."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"Build {name}; see `dinat_backbone.create_classifier` and `timm.create_model`."

    def __call__(self, pretrained: bool = False, **settings: Any) -> nn.Module:
        levels = issubclass(VARIANTS[self.__name__].model, Hierarchy)
        features = {"feature_cls": ClassifierFeatures, "out_indices": (0, 1, 2, 3) if levels else _LAST_BLOCKS}
        features["output_fmt"] = "NCHW"  # timm before 1.0.31 would take the classifier's
        return build_model_with_cfg(self._build, self.__name__, pretrained, feature_cfg=features, **settings)

    def _build(self, **settings: Any) -> Classifier:
        if "in_chans" in settings:
            settings["in_channels"] = settings.pop("in_chans")
        if "img_size" in settings:
            settings["image_size"] = _side(settings.pop("img_size"))
        return create_classifier(self.__name__, **settings)


def _side(size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BackboneConfigError(f"img_size {height} x {width}: expected a square")
    return height


for _name in VARIANTS:
    # A model that timm has under the name is replaced, which timm reports as a warning.
    globals()[_name] = register_model(_Entrypoint(_name))
