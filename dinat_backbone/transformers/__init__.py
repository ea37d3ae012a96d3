"""NAT and DiNAT for the transformers library, without NATTEN; importing this registers them with its Auto classes.

`AutoConfig`, `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and `AutoImageProcessor` then load folders
in the layout of the published models, with `"model_type": "dinat"` or `"nat"`. They replace transformers' own DiNAT,
which can't be imported any more; NAT was removed from that library.
"""

import sys
from pathlib import Path
from typing import Any

from dinat_common.errors import MissingPackageError

try:
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        ViTImageProcessor,
        ViTImageProcessorPil,
    )

    from . import modeling
    from .configuration import DinatConfig, NatConfig
    from .conversion import create_model, image_processor, to_native
    from .modeling import (
        DinatBackbone,
        DinatForImageClassification,
        DinatModel,
        NatBackbone,
        NatForImageClassification,
        NatModel,
    )
except ImportError as _error:
    raise MissingPackageError("dinat_backbone.transformers", "transformers", _error) from _error

__all__ = [
    "DinatBackbone",
    "DinatConfig",
    "DinatForImageClassification",
    "DinatModel",
    "NatBackbone",
    "NatConfig",
    "NatForImageClassification",
    "NatModel",
    "create_model",
    "image_processor",
    "to_native",
]

_from_hub = AutoBackbone.from_pretrained


def _from_folder_or_hub(
    cls: type[AutoBackbone], pretrained_model_name_or_path: str | Path, *arguments: Any, **settings: Any
) -> Any:
    """`AutoBackbone.from_pretrained` which also takes folders.

    transformers 5.24 asks the hub whether a backbone exists, even if its name is a folder, and fails.
    """
    if Path(pretrained_model_name_or_path).is_dir():
        settings.pop("use_timm_backbone", None)
        # The method of all Auto classes, which AutoBackbone's own calls for a backbone of the hub.
        load = super(AutoBackbone.__bases__[0], cls).from_pretrained  # ty: ignore[invalid-super-argument]
        return load(pretrained_model_name_or_path, *arguments, **settings)
    return _from_hub(pretrained_model_name_or_path, *arguments, **settings)


AutoBackbone.from_pretrained = classmethod(_from_folder_or_hub)  # ty: ignore[invalid-assignment]

# transformers' own module can't be imported beside a current NATTEN. Whatever goes through all models of the library,
# such as a pipeline, imports it.
sys.modules["transformers.models.dinat.modeling_dinat"] = modeling

for _config, _model, _classifier, _backbone in (
    (DinatConfig, DinatModel, DinatForImageClassification, DinatBackbone),
    (NatConfig, NatModel, NatForImageClassification, NatBackbone),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
    AutoBackbone.register(_config, _backbone, exist_ok=True)
    AutoImageProcessor.register(
        _config,
        image_processor_classes={"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil},
        exist_ok=True,
    )
