"""UPerNet's head (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018) and an auxiliary head.

The head pools the coarsest map over pyramids of bins (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017), adds
coarse maps to finer ones (Lin et al., "Feature Pyramid Networks", CVPR 2017), and classifies pixels on all of them.

Shapes:
    B: images; K: classes; C: channels of a map; h, w: height and width of the finest map
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...config import ConfigError, require_maps

# Standard deviation of the initial weights of a classification layer.
_CLASSIFIER_STD = 0.01


@SEM_SEG_HEADS_REGISTRY.register()
class UPerNetHead(nn.Module):
    """Class logits of pixels from maps of several strides."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: str = "SyncBN",
    ) -> None:
        """Create the layers.

        Args:
            in_features: Names of the maps, from the finest to the coarsest.
            in_channels: Channels of these maps.
            num_classes: Number of classes.
            channels: Channels of all maps inside the head.
            pool_sizes: Numbers of bins per axis that the coarsest map is averaged over.
            dropout: Probability that a channel is dropped before the classification.
            norm: Norm after each convolution but the last, see Detectron2's `get_norm`.
        """
        super().__init__()
        self.in_features = list(in_features)
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(BinAverages(size), _convolution(coarsest, channels, 1, norm)) for size in pool_sizes
        )
        self.bottleneck = _convolution(coarsest + len(pool_sizes) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(_convolution(count, channels, 1, norm) for count in finer)
        self.fpn_convs = nn.ModuleList(_convolution(channels, channels, 3, norm) for _ in finer)
        self.fpn_bottleneck = _convolution(len(in_channels) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(channels, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read `MODEL.SEM_SEG_HEAD`.

        Raises:
            ConfigError: The backbone does not have the maps of IN_FEATURES.
        """
        node = cfg.MODEL.SEM_SEG_HEAD
        return {
            "in_features": node.IN_FEATURES,
            "in_channels": _channels(input_shape, node.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
            "num_classes": node.NUM_CLASSES,
            "channels": node.CONVS_DIM,
            "pool_sizes": node.POOL_SIZES,
            "dropout": node.DROPOUT,
            "norm": node.NORM,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map {name: [B, C, ...]} to logits [B, K, h, w] at the stride of the finest map."""
        *finer, coarsest = (features[name] for name in self.in_features)
        pooled = [_resized(module(coarsest), coarsest) for module in self.psp_modules]
        top = self.bottleneck(torch.cat([coarsest, *pooled], 1))
        summed = [top]
        for convolution, feature in zip(reversed(self.lateral_convs), reversed(finer), strict=True):
            lateral = convolution(feature)
            summed.insert(0, lateral + _resized(summed[0], lateral))
        smoothed = [convolution(x) for convolution, x in zip(self.fpn_convs, summed[:-1], strict=True)]
        first, *others = (*smoothed, top)
        maps = torch.cat([first, *(_resized(x, first) for x in others)], 1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(maps)))


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """Class logits of pixels from one map, for an auxiliary loss (Zhao et al., CVPR 2017, section 3.3)."""

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        num_classes: int,
        channels: int = 256,
        num_convs: int = 1,
        dropout: float = 0.1,
        norm: str = "SyncBN",
    ) -> None:
        """Create the layers.

        Args:
            in_feature: Name of the map.
            in_channels: Channels of the map.
            num_classes: Number of classes.
            channels: Channels inside the head.
            num_convs: Number of 3x3 convolutions before the classification.
            dropout: Probability that a channel is dropped before the classification.
            norm: Norm after each of these convolutions, see Detectron2's `get_norm`.
        """
        super().__init__()
        self.in_feature = in_feature
        widths = [in_channels, *[channels] * num_convs]
        self.convs = nn.Sequential(*(_convolution(before, after, 3, norm) for before, after in pairwise(widths)))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(widths[-1], num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read `MODEL.AUXILIARY_HEAD`.

        Raises:
            ConfigError: IN_FEATURES is not one map of the backbone.
        """
        node, key = cfg.MODEL.AUXILIARY_HEAD, "MODEL.AUXILIARY_HEAD.IN_FEATURES"
        if len(node.IN_FEATURES) != 1:
            raise ConfigError(f"{key} is {list(node.IN_FEATURES)}, expected the name of one map")
        return {
            "in_feature": node.IN_FEATURES[0],
            "in_channels": _channels(input_shape, node.IN_FEATURES, key)[0],
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "channels": node.CONVS_DIM,
            "num_convs": node.NUM_CONVS,
            "dropout": node.DROPOUT,
            "norm": node.NORM,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map {name: [B, C, h, w]} to logits [B, K, h, w]."""
        return self.conv_seg(self.dropout(self.convs(features[self.in_feature])))


class BinAverages(nn.Module):
    """Averages over a square number of bins, which may be more than the map has cells: [B, C, h, w] to [B, C, n, n].

    Maps of unknown size, in an export, are averaged by a matrix for each axis: ONNX has no pooling whose bins depend on
    the size of the map.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Average a map."""
        height, width = x.shape[-2:]
        if isinstance(height, int) and isinstance(width, int):
            return F.adaptive_avg_pool2d(x, self.bins)
        rows, columns = (_bin_weights(size, self.bins, x) for size in (height, width))
        return rows @ x @ columns.T

    def extra_repr(self) -> str:
        """Return the number of bins per axis."""
        return str(self.bins)


def _bin_weights(size: int, bins: int, like: Tensor) -> Tensor:
    """Weight of each of `size` cells in each bin: [bins, size], in the dtype and on the device of a map.

    Bin i has the cells from floor(i * size / bins) up to, and without, ceil((i + 1) * size / bins).
    """
    number = torch.arange(bins, device=like.device)[:, None]
    first = torch.div(number * size, bins, rounding_mode="floor")
    end = torch.div((number + 1) * size + bins - 1, bins, rounding_mode="floor")
    position = torch.arange(size, device=like.device)
    return ((position >= first) & (position < end)).to(like.dtype) / (end - first)


def _convolution(in_channels: int, out_channels: int, size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size of a map, a norm and a ReLU."""
    convolution = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _classifier(in_channels: int, num_classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=_CLASSIFIER_STD)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)
    return classifier


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """A map at the height and width of another."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _channels(input_shape: dict[str, ShapeSpec], names: Sequence[str], key: str) -> list[int]:
    require_maps(key, names, input_shape)
    return [input_shape[name].channels or 0 for name in names]
