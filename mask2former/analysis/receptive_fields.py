"""How far a backbone of neighborhood attention sees: in theory, layer by layer, and in effect, by gradients.

In theory, the output at a position depends on a set of rows times a set of columns of the image, because every layer
combines positions of both axes independently. On an unbounded map, l layers of neighborhood attention with kernel size
k see l (k - 1) + 1 positions per axis; dilated ones see up to k ** l; windows of k that are shifted in every second
layer, as in Swin, see l k (Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001, section
3.4). The sets here are those of the implemented rule: windows are shifted inwards at borders, and padding is not seen.

The effective receptive field is the gradient of an output with respect to the image (Luo et al., "Understanding the
Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016).

Shapes:
    B: images; H, W: height and width of an image; L: positions of an axis of a map; P: pixels of an axis of the image
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError
from .networks import Network

# Positions that each of L positions of an axis attends to, [L, neighbors], of an attention module with its number in
# its level. Positions outside 0 .. L - 1 are not seen.
NeighborRule = Callable[[Any, int, int], Tensor]


@dataclass(frozen=True)
class LayerField:
    """Theoretical receptive field of the centre position of a layer's output.

    Attributes:
        layer: Name of the module.
        kernel_size: Neighbors per axis of an attention layer; 0 for other layers.
        dilation: Distance between neighbors; 0 for other layers.
        map_size: Height and width of the output.
        rows: Rows of the image that the centre depends on.
        columns: Columns of the image that the centre depends on.
    """

    layer: str
    kernel_size: int
    dilation: int
    map_size: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the rectangle around all pixels that are seen."""
        return self.rows[-1] - self.rows[0] + 1, self.columns[-1] - self.columns[0] + 1

    def as_dict(self) -> dict[str, Any]:
        """Contents of a JSON file."""
        return {
            "layer": self.layer,
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
            "map_size": list(self.map_size),
            "extent": list(self.extent),
            "rows": len(self.rows),
            "columns": len(self.columns),
        }


def own_neighbors(attention: Any, _number: int, size: int) -> Tensor:
    """Rule of the attention module itself."""
    return attention.neighbors(size)


def swin_neighbors(attention: Any, number: int, size: int) -> Tensor:
    """Rule of Swin in place of neighborhood attention: windows of the same size, shifted by half in every second block.

    A map that fits into a window is not shifted (Liu et al., "Swin Transformer", arXiv 2103.14030, section 3.2).
    """
    window = attention.kernel_size
    shift = window // 2 if number % 2 and size > window else 0
    first = (torch.arange(size) + (window - shift) % window) // window * window - (window - shift) % window
    return first[:, None] + torch.arange(window)


def theoretical_fields(network: Network, size: tuple[int, int], rule: NeighborRule = own_neighbors) -> list[LayerField]:
    """Compute the receptive field of the centre position after each layer of a backbone.

    Args:
        network: Network on the meta device.
        size: Height and width of the image.
        rule: Positions that attention layers see.

    Raises:
        ConfigError: The backbone has no neighborhood attention.
    """
    layers = _trace(network, size)
    # What each position of the current map depends on, [L, P] per axis.
    seen = [torch.eye(side, dtype=torch.bool) for side in size]
    fields = []
    for layer in layers:
        seen = [_see(layer.dependencies(axis, rule), of_axis) for axis, of_axis in enumerate(seen)]
        rows, columns = (tuple(of_axis[len(of_axis) // 2].nonzero()[:, 0].tolist()) for of_axis in seen)
        is_attention = hasattr(layer.module, "neighbors")
        kernel_size = getattr(layer.module, "kernel_size", 0) if is_attention else 0
        dilation = getattr(layer.module, "dilation", 1) if is_attention and rule is own_neighbors else int(is_attention)
        fields.append(LayerField(layer.name, kernel_size, dilation, layer.output_size, rows, columns))
    return fields


def effective_fields(network: Network, images: Tensor) -> list[Tensor]:
    """Compute the effective receptive field of the centre position of each output map.

    Args:
        network: Network with values; with random weights the result shows the architecture alone.
        images: Normalised images [B, 3, H, W].

    Returns:
        Absolute gradient of the sum of the centre's channels, averaged over channels and images, float32 [H, W], for
        each output map from fine to coarse.

    Raises:
        ConfigError: The backbone has no neighborhood attention.
    """
    trunk = _trunk(network)
    images = images.requires_grad_()
    with torch.enable_grad():
        maps = list(trunk.level_maps(images))
        gradients = []
        for index, output in enumerate(maps):
            centre = output[:, output.shape[1] // 2, output.shape[2] // 2].sum()
            gradients.append(torch.autograd.grad(centre, images, retain_graph=index + 1 < len(maps))[0])
    return [gradient.abs().mean((0, 1)).float() for gradient in gradients]


def area_above(field: Tensor, threshold: float) -> float:
    """Part of the pixels of an effective receptive field that exceed a fraction of its maximum."""
    return (field > threshold * field.max()).float().mean().item()


def side_around(field: Tensor, share: float) -> int:
    """Side of the smallest square around the centre that holds a share of an effective receptive field [H, W]."""
    rows, columns = ((torch.arange(side) - side // 2).abs() for side in field.shape)
    distance = torch.maximum(rows[:, None], columns)
    rings = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
    rings.index_add_(0, distance.flatten(), field.double().flatten().cpu())
    reached = (rings.cumsum(0) >= share * rings.sum()).nonzero()
    return 2 * int(reached[0]) + 1


@dataclass(frozen=True)
class _Layer:
    name: str
    module: nn.Module
    input_size: tuple[int, int]
    output_size: tuple[int, int]

    def dependencies(self, axis: int, rule: NeighborRule) -> Tensor:
        """Input positions that each output position of an axis depends on, bool [outputs, inputs]."""
        inputs, outputs = self.input_size[axis], self.output_size[axis]
        module: Any = self.module
        if hasattr(module, "neighbors"):
            number = re.search(r"(?:blocks|layers)\.(\d+)\.attn$", self.name)
            positions = rule(module, int(number[1]) if number else 0, inputs)
        elif isinstance(module, nn.Conv2d):
            first = torch.arange(outputs) * module.stride[axis] - module.padding[axis]
            positions = first[:, None] + torch.arange(module.kernel_size[axis])
        else:  # patch merging
            positions = torch.arange(outputs)[:, None] * 2 + torch.arange(2)
        matrix = torch.zeros((outputs, inputs + 1), dtype=torch.bool)
        # Positions outside the map go to one more column.
        outside = (positions < 0) | (positions >= inputs)
        return matrix.scatter_(1, positions.masked_fill(outside, inputs), value=True)[:, :inputs]


def _see(dependencies: Tensor, seen: Tensor) -> Tensor:
    """Combine a layer [outputs, inputs] with what its inputs see, [inputs, P]. Inputs that are padding see nothing."""
    known = min(len(seen), dependencies.shape[1])
    return dependencies[:, :known].float() @ seen[:known].float() > 0


def _trunk(network: Network) -> Any:
    for module in network.model.modules():
        if hasattr(module, "level_maps"):
            return module
    raise ConfigError("the model has no backbone of neighborhood attention, whose receptive field could be computed")


def _trace(network: Network, size: tuple[int, int]) -> list[_Layer]:
    """Layers of a backbone that combine positions, in the order of their execution, with the sizes of their maps."""
    trunk, layers = _trunk(network), list[_Layer]()

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            axes = slice(2, 4) if isinstance(module, nn.Conv2d) else slice(1, 3)
            sizes = [(x.shape[axes][0], x.shape[axes][1]) for x in (inputs[0], output)]
            layers.append(_Layer(name, module, *sizes))

        return hook

    handles = [
        module.register_forward_hook(record(name)) for name, module in trunk.named_modules() if _combines(module)
    ]
    try:
        with torch.no_grad():
            list(trunk.level_maps(torch.empty((1, 3, *size), device="meta")))
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _combines(module: nn.Module) -> bool:
    """Whether a module combines positions itself: convolution, attention, or patch merging."""
    merges = isinstance(getattr(module, "reduction", None), nn.Linear)
    return isinstance(module, nn.Conv2d) or hasattr(module, "neighbors") or merges
