"""The calls that benchmarks/attention.py times, and other ways to compute neighborhood attention."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import yaml
from _measure import available_memory
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dinat_backbone import neighborhood_attention_2d
from dinat_backbone.ops.dispatch import BACKENDS
from dinat_backbone.ops.reference import Call, window_start

PEERS = ("tiled", "flex-tiles", "flex-groups", "flex-rows", "gather", "dense", "natten")
ROOT = Path(__file__).resolve().parents[1]
HEAD_DIM = 32
# Height and width of a tile: one block of tokens.
_TILE = (8, 16)
_BLOCK = 128
# The model "dry-run": calls so small that Triton's interpreter computes them in a second.
_DRY_RUN: dict[str, Any] = {"KERNEL_SIZE": 3, "NUM_HEADS": [1, 1], "DILATIONS": [[], [1, 2]]}


@dataclass(frozen=True)
class Geometry:
    """Windows of all positions of a map.

    Attributes:
        kernel_size: Width of a window.
        dilation: Distance between the keys of a window.
        group: Residue group of each position, per axis.
        coordinate: Coordinate of each position in its group, per axis.
        first: Coordinate of the first key of each position, per axis.
    """

    kernel_size: int
    dilation: int
    group: list[Tensor]
    coordinate: list[Tensor]
    first: list[Tensor]

    @classmethod
    def of_map(cls, height: int, width: int, kernel_size: int, dilation: int, device: torch.device) -> "Geometry":
        """Windows of a map, its positions row by row."""
        axes = [torch.arange(size, device=device) for size in (height, width)]
        grid = [x.flatten() for x in torch.meshgrid(*axes, indexing="ij")]
        group, coordinate = [x % dilation for x in grid], [x // dilation for x in grid]
        first = [
            window_start(x, (size - g + dilation - 1) // dilation, kernel_size)
            for x, g, size in zip(coordinate, group, (height, width), strict=True)
        ]
        return cls(kernel_size, dilation, group, coordinate, first)

    def arranged(self, tokens: Tensor) -> "Geometry":
        """The same windows with positions in another order."""
        group, coordinate, first = ([x[tokens] for x in axes] for axes in (self.group, self.coordinate, self.first))
        return replace(self, group=group, coordinate=coordinate, first=first)

    def order(self, layout: str) -> Tensor:
        """Order of tokens: row by row ("rows"), by residue group ("groups"), or in tiles within groups ("tiles")."""
        groups = self.group[0] * self.dilation + self.group[1]
        if layout == "rows":
            return torch.arange(len(groups), device=groups.device)
        if layout == "tiles":
            tiles = [x // size for x, size in zip(self.coordinate, _TILE, strict=True)]
            groups = (groups * (int(tiles[0].max()) + 1) + tiles[0]) * (int(tiles[1].max()) + 1) + tiles[1]
        return groups.argsort(stable=True)

    def attends(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether queries attend to keys."""
        (group_y, group_x), (y, x), (first_y, first_x) = self.group, self.coordinate, self.first
        same = (group_y[q] == group_y[k]) & (group_x[q] == group_x[k])
        inside_y = (y[k] >= first_y[q]) & (y[k] < first_y[q] + self.kernel_size)
        return same & inside_y & (x[k] >= first_x[q]) & (x[k] < first_x[q] + self.kernel_size)

    def bias(self, table: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Bias of pairs of queries and keys; arbitrary for pairs outside the window."""
        row, column = ((x[k] - x[q] + self.kernel_size - 1).clamp(0, 2 * self.kernel_size - 2) for x in self.coordinate)
        return table[head, row, column]


class Flex:
    """`torch.compile`d FlexAttention: a block mask for the windows, a score_mod for the bias."""

    def __init__(self, geometry: Geometry, rpb: Tensor, layout: str) -> None:
        self.tokens = geometry.order(layout)
        arranged = geometry.arranged(self.tokens)

        def mask(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return arranged.attends(q, k)

        def bias(score: Tensor, _batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + arranged.bias(rpb, head, q, k)

        self._bias = bias
        self._mask = _block_mask(arranged, len(self.tokens), mask)
        # Its CPU code does not compile with symbolic sizes (PyTorch 2.14).
        self._attend = torch.compile(flex_attention, dynamic=False)

    def arrange(self, x: Tensor) -> Tensor:
        """Turn a map [B, H, W, heads, D] into tokens [B, heads, H * W, D]."""
        return x.flatten(1, 2)[:, self.tokens].transpose(1, 2).contiguous()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute attention of arranged tokens."""
        attended = self._attend(query, key, value, score_mod=self._bias, block_mask=self._mask)
        # It returns a tuple only with return_lse or return_aux.
        return cast(Tensor, attended)


def _block_mask(geometry: Geometry, length: int, mask: Callable[..., Tensor]) -> BlockMask:
    """Replacement for `create_block_mask` that never holds the mask of all pairs: it works by rows of blocks."""
    device = geometry.group[0].device
    blocks = -(-length // _BLOCK)
    keys = torch.arange(length, device=device)
    needed = torch.zeros(blocks, blocks * _BLOCK, dtype=torch.bool, device=device)
    for block in range(blocks):
        queries = keys[block * _BLOCK : (block + 1) * _BLOCK]
        needed[block, :length] = geometry.attends(queries[:, None], keys).any(0)
    needed = needed.view(blocks, blocks, _BLOCK).any(-1)
    indices = needed.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
    counts = needed.sum(-1).int()
    return BlockMask.from_kv_blocks(
        counts[None, None], indices[None, None], BLOCK_SIZE=_BLOCK, mask_mod=mask, seq_lengths=(length, length)
    )


class Dense:
    """`scaled_dot_product_attention` over the whole map, with a bias of -inf outside windows."""

    def __init__(self, geometry: Geometry, rpb: Tensor, dtype: torch.dtype) -> None:
        tokens = torch.arange(len(geometry.group[0]), device=rpb.device)
        self._bias = torch.stack(
            [
                geometry.bias(rpb, torch.tensor(head, device=rpb.device), tokens[:, None], tokens)
                .masked_fill(~geometry.attends(tokens[:, None], tokens), float("-inf"))
                .to(dtype)
                for head in range(len(rpb))
            ]
        )[None]

    def arrange(self, x: Tensor) -> Tensor:
        """Turn a map [B, H, W, heads, D] into tokens [B, heads, H * W, D]."""
        return x.flatten(1, 2).transpose(1, 2).contiguous()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute attention of all tokens."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias)


@dataclass(frozen=True)
class Case:
    """Attention of one or more equal layers of a model, for one image."""

    model: str
    image: tuple[int, int]
    stage: int
    height: int
    width: int
    heads: int
    kernel_size: int
    dilation: int
    layers: int

    @property
    def elements(self) -> int:
        """Number of elements of a map."""
        return self.height * self.width * self.heads * HEAD_DIM

    def __str__(self) -> str:
        """E.g. large 160x160 d14."""
        return f"{self.model} {self.height}x{self.width} d{self.dilation}"


def cases(model: str, image: tuple[int, int]) -> Iterator[Case]:
    """All distinct calls of a model of configs/_base_, or "dry-run", for an image; small maps are padded as there."""
    settings = _DRY_RUN
    if model != "dry-run":
        settings = yaml.safe_load((ROOT / "configs" / "_base_" / f"dinat_{model}.yaml").read_text())["MODEL"]["DINAT"]
    kernel_size = settings["KERNEL_SIZE"]
    for stage, (heads, dilations) in enumerate(zip(settings["NUM_HEADS"], settings["DILATIONS"], strict=True)):
        for dilation, layers in Counter(dilations).items():
            size = [max(-(-side // (4 << stage)), kernel_size * dilation) for side in image]
            yield Case(model, image, stage, size[0], size[1], heads, kernel_size, dilation, layers)


class Inputs:
    """Random query, key and value maps with the layout that a projection gives them, and programs on them."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (1, case.height, case.width, 3, case.heads, HEAD_DIM)
        self.case, self.device = case, device
        self.maps = torch.randn(shape, generator=generator).to(device, dtype).unbind(3)
        table = (case.heads, 2 * case.kernel_size - 1, 2 * case.kernel_size - 1)
        self.rpb = torch.randn(table, generator=generator).to(device)

    def program(self, name: str) -> Callable[..., Tensor]:
        """Return a function of three maps, which are arranged for it by `arranged`.

        Raises:
            ValueError: The program can't serve this case; the message gives the reason.
        """
        case, tokens = self.case, self.case.height * self.case.width
        bytes_each = self.maps[0].element_size()
        if name in ("auto", "tiled", "triton"):
            return lambda q, k, v: neighborhood_attention_2d(
                q, k, v, self.rpb, case.kernel_size, case.dilation, None, name
            )
        if name == "gather":
            self._need(2 * case.elements * case.kernel_size**2 * bytes_each)
            return lambda q, k, v: neighborhood_attention_2d(
                q, k, v, self.rpb, case.kernel_size, case.dilation, None, "reference"
            )
        if name == "natten":
            return self._natten(tokens)
        geometry = Geometry.of_map(case.height, case.width, case.kernel_size, case.dilation, self.device)
        if name == "dense":
            self._need(3 * case.heads * tokens**2 * bytes_each)
            return Dense(geometry, self.rpb, self.maps[0].dtype)
        if case.dilation == 1 and name == "flex-groups":
            raise ValueError("the same as flex-rows")
        torch.compiler.reset()
        return Flex(geometry, self.rpb, name.removeprefix("flex-"))

    def _natten(self, tokens: int) -> Callable[..., Tensor]:
        case = self.case
        query, key, value = self.maps
        call = Call(query, key, value, None, case.kernel_size, case.dilation, HEAD_DIM**-0.5)
        reason = BACKENDS["natten"].why_not(call)
        if reason:
            raise ValueError(reason)
        if self.device.type == "cpu":
            # It has no kernels for CPUs: it calls uncompiled FlexAttention, which holds all scores.
            self._need(3 * case.heads * tokens**2 * 4)
        return lambda q, k, v: neighborhood_attention_2d(q, k, v, None, case.kernel_size, case.dilation, None, "natten")

    def _need(self, size: int) -> None:
        if size > 0.6 * available_memory(self.device):
            raise ValueError(f"needs {size / 1e9:.0f} GB")


def arranged(program: Callable[..., Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps in the arrangement that a program expects."""
    return [program.arrange(x) for x in maps] if isinstance(program, Flex | Dense) else list(maps)
