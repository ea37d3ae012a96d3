"""Networks as the papers count and look at them: from a normalised image to raw outputs, without results.

Shapes:
    B: images; H, W: height and width of an image
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn

from ..config import ConfigError
from ..maskformer_model import MaskFormer
from ..modeling.meta_arch import ImageClassifier, MaskRCNN, PixelClassifier

# Regions that the published FLOPs of detectors are counted with (mmdet 2.19): boxes, and masks of one of them in ten.
BOXES, MASKS = 1000, 100


class Network(nn.Module):
    """A model as a function of a normalised image.

    Attributes:
        model: Model of any kind. Names of parts are names of its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        """Set the model.

        Raises:
            ConfigError: It is not clear what the network of a model of this kind is.
        """
        super().__init__()
        self.model = model
        self._run = _find_run(model)

    def forward(self, image: Tensor) -> Any:
        """Run the network on a normalised image [B, 3, H, W]."""
        return self._run(self.model, image)


def build_network(cfg: CfgNode, device: str = "meta") -> Network:
    """Build the network of a config in evaluation mode, without loading weights.

    Args:
        cfg: Config.
        device: Device of the network. On the meta device it has shapes without values or memory.

    Raises:
        ConfigError: The config can't be used, or it is not clear what the network of such a model is.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with torch.device(device):
        return Network(build_model(cfg)).eval()


def _find_run(model: nn.Module) -> Callable[[Any, Tensor], Any]:
    for kind, run in _RUNS.items():
        if isinstance(model, kind):
            return run
    if isinstance(model, tuple(kind for _, kind in META_ARCH_REGISTRY)):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {type(model).__name__} can't be analysed, expected one of "
            f"{', '.join(kind.__name__ for kind in _RUNS)}"
        )
    # A classifier or a backbone alone maps an image itself.
    return lambda module, image: module(image)


def _run_mask2former(model: MaskFormer, image: Tensor) -> Any:
    return model.sem_seg_head(model.backbone(image))


def _run_pixel_classifier(model: PixelClassifier, image: Tensor) -> Tensor:
    # The published FLOPs include the first of the two resizes of the logits, to the size of the input.
    logits = model.sem_seg_head(model.backbone(image))
    return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _run_detector(model: MaskRCNN, image: Tensor) -> Any:
    """Run all layers of a detector. Which regions they see is not computed: features of regions have no values."""
    maps = model.backbone(image)
    generator: Any = model.proposal_generator
    heads: Any = model.roi_heads
    finest = maps[heads.in_features[0]]
    boxes, masks = (
        finest.new_empty((count, finest.shape[1], pooler.size, pooler.size))
        for count, pooler in ((BOXES, heads.box_pooler), (MASKS, heads.mask_pooler))
    )
    outputs: list[Any] = [generator.rpn_head([maps[name] for name in generator.in_features])]
    outputs += [predictor(head(boxes)) for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True)]
    return [*outputs, *(head.layers(masks) for head in heads.mask_head)]


def _run_image_classifier(model: ImageClassifier, image: Tensor) -> Tensor:
    return model.logits(image)


_RUNS: dict[type[nn.Module], Callable[[Any, Tensor], Any]] = {
    MaskFormer: _run_mask2former,
    PixelClassifier: _run_pixel_classifier,
    MaskRCNN: _run_detector,
    ImageClassifier: _run_image_classifier,
}
