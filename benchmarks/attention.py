"""Neighborhood attention side by side: `tiled` against compiled FlexAttention with the same bias, on one device.

    python benchmarks/attention.py [--size 160] [--heads 6] [--dilations 1 14] [--threads 1] [--output attention.json]

FlexAttention runs twice: on tokens row by row, as one would call it, and on tokens sorted by residue group, the kindest
order for its block mask (the same for dilation 1); sorting is not timed. Prints, for each dilation, median times of
forward and of forward + backward, the ratios between the programs, the largest tensor made, and the largest difference
of the results. Ratios come from one run, so they can be compared between machines; times can't.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dinat_backbone import neighborhood_attention_2d
from dinat_backbone.ops.windows import window_start

HEAD_DIM = 32


def median_seconds(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time of a call, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_allocation(call: Callable[[], Any]) -> int:
    """Elements of the largest tensor that a call makes in PyTorch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return result

    with Watch():
        call()
    return largest


class FlexNeighborhoodAttention:
    """The same function by `torch.compile`d FlexAttention: a block mask for the window, a score_mod for the bias.

    Tokens lie row by row, or with those of a residue group together, so that more blocks can be skipped.
    """

    def __init__(self, size: int, kernel_size: int, dilation: int, rpb: Tensor, sort: bool) -> None:
        position = torch.arange(size)
        group, coordinate = position % dilation, position // dilation
        first = window_start(coordinate, (size - group + dilation - 1) // dilation, kernel_size)
        self.tokens = torch.arange(size * size)
        if sort:
            self.tokens = (group[:, None] * dilation + group[None, :]).flatten().argsort(stable=True)
        rows, columns = self.tokens // size, self.tokens % size
        group_y, y, first_y = group[rows], coordinate[rows], first[rows]
        group_x, x, first_x = group[columns], coordinate[columns], first[columns]

        def mask(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same = (group_y[q] == group_y[k]) & (group_x[q] == group_x[k])
            inside_y = (y[k] >= first_y[q]) & (y[k] < first_y[q] + kernel_size)
            inside_x = (x[k] >= first_x[q]) & (x[k] < first_x[q] + kernel_size)
            return same & inside_y & inside_x

        def bias(score: Tensor, _batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            # Scores are also computed for masked keys of a block, whose offsets may lie outside the table.
            row = (y[k] - y[q] + kernel_size - 1).clamp(0, 2 * kernel_size - 2)
            column = (x[k] - x[q] + kernel_size - 1).clamp(0, 2 * kernel_size - 2)
            return score + rpb[head, row, column]

        self.bias = bias
        self.block_mask = create_block_mask(mask, None, None, size * size, size * size, device="cpu", BLOCK_SIZE=128)
        self.attend = torch.compile(flex_attention)

    def arrange(self, x: Tensor) -> Tensor:
        """Turn a map [B, H, W, heads, D] into tokens [B, heads, H * W, D]."""
        return x.flatten(1, 2)[:, self.tokens].transpose(1, 2).contiguous()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend arranged tokens."""
        attended = self.attend(query, key, value, score_mod=self.bias, block_mask=self.block_mask)
        # With return_lse or return_aux, which are off, it would be a tuple.
        return cast(Tensor, attended)


def compare(size: int, heads: int, kernel_size: int, dilation: int, repeats: int) -> dict[str, Any]:
    """Time both programs on the same inputs."""
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, size, size, heads, HEAD_DIM, generator=generator) for _ in range(3))
    rpb = torch.randn(heads, 2 * kernel_size - 1, 2 * kernel_size - 1, generator=generator)
    gradient = torch.randn(query.shape, generator=generator)

    def tiled() -> Tensor:
        return neighborhood_attention_2d(query, key, value, rpb, kernel_size, dilation, backend="tiled")

    row: dict[str, Any] = {"dilation": dilation}
    with torch.no_grad():
        row["tiled fwd (s)"] = median_seconds(tiled, repeats, device)
        row["largest tensor / input"] = largest_allocation(tiled) / query.numel()
        for layout in ("rows", "sorted"):
            flex = FlexNeighborhoodAttention(size, kernel_size, dilation, rpb, sort=layout == "sorted")
            tokens = [flex.arrange(x) for x in (query, key, value)]
            difference = float((flex(*tokens) - flex.arrange(tiled())).abs().max())
            row["difference"] = max(difference, row.get("difference", 0.0))
            seconds = median_seconds(lambda flex=flex, tokens=tokens: flex(*tokens), repeats, device)
            row[f"flex {layout} (s)"] = seconds
            row[f"flex {layout} / tiled"] = seconds / row["tiled fwd (s)"]
    leaves = [x.requires_grad_() for x in (query, key, value, rpb)]
    row["tiled fwd + bwd (s)"] = median_seconds(lambda: torch.autograd.grad(tiled(), leaves, gradient), repeats, device)
    row["(fwd + bwd) / fwd"] = row["tiled fwd + bwd (s)"] / row["tiled fwd (s)"]
    return row


def main() -> None:
    """Measure, print a table, save it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=160, help="height and width of the map")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kernel-size", type=int, default=11)
    parser.add_argument("--dilations", type=int, nargs="+", default=[1, 14])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write the table as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), float32, {args.size} x {args.size}, {args.heads} heads"
    )
    rows = [compare(args.size, args.heads, args.kernel_size, dilation, args.repeats) for dilation in args.dilations]
    columns = [[name, *(row[name] for row in rows)] for name in rows[0]]
    print(tabulate(columns, floatfmt=".3g"))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
