"""Feature pyramid over the maps of any backbone (Lin et al., "Feature Pyramid Networks", CVPR 2017)."""

from itertools import pairwise

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import fpn
from torch import Tensor

from mask2former.config import ConfigError, require_maps


class FPN(fpn.FPN):
    """Detectron2's feature pyramid for maps of any size: a coarser map is enlarged to the size of the finer one.

    Detectron2 doubles the sides, which fits only images whose sides are multiples of the largest stride.
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to {"p2": [B, C, H/4, W/4], ..., "p6": [B, C, H/64, W/64]}."""
        maps = self.bottom_up(x)
        outputs: list[Tensor] = []
        merged = None
        # From the coarsest map to the finest, the order in which Detectron2 keeps the convolutions.
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True):
            finer = lateral(maps[name])
            merged = finer if merged is None else finer + F.interpolate(merged, finer.shape[-2:], mode="nearest")
            outputs.insert(0, output(merged))
        if self.top_block is not None:
            outputs += self.top_block(outputs[-1])
        return dict(zip(self._out_features, outputs, strict=True))


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build the pyramid of `MODEL.FPN` over a backbone, with one more level by taking every second pixel.

    Raises:
        ConfigError: The backbone lacks one of MODEL.FPN.IN_FEATURES, or their strides do not double.
    """
    node, key, known = cfg.MODEL.FPN, "MODEL.FPN.IN_FEATURES", bottom_up.output_shape()
    require_maps(key, node.IN_FEATURES, known)
    strides = [known[name].stride or 1 for name in node.IN_FEATURES]
    if any(after != 2 * before for before, after in pairwise(strides)):
        raise ConfigError(f"{key} is {list(node.IN_FEATURES)} with strides {strides}, expected strides that double")
    top = fpn.LastLevelMaxPool()
    return FPN(bottom_up, list(node.IN_FEATURES), node.OUT_CHANNELS, node.NORM, top, node.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_dinat_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the backbone `MODEL.FPN.BOTTOM_UP` with a pyramid, for meta-architectures of Detectron2 that expect one."""
    return build_fpn(cfg, BACKBONE_REGISTRY.get(cfg.MODEL.FPN.BOTTOM_UP)(cfg, input_shape))
