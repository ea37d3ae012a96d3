"""Cases of deformable attention for all backends, and the comparison with the reference in float64.

`python -m tests.modeling.deformable triton` compares a backend in a process of its own: Triton's interpreter must be
chosen before Triton is imported.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import ms_deform_attn


@dataclass(frozen=True)
class Case:
    """Sizes of a call; locations are uniform in the maps and `spread` of their sides around them."""

    shapes: tuple[tuple[int, int], ...] = ((3, 4), (5, 7), (1, 2))
    batch: int = 1
    queries: int = 5
    heads: int = 2
    channels: int = 4
    points: int = 2
    spread: float = 0.3


CASES = {
    "inside": Case(spread=0, batch=2),
    "around": Case(batch=2, heads=3, channels=5, points=3),
    "mostly outside": Case(spread=2),
    "far outside": Case(spread=1e12),
    "single cells and rows": Case(shapes=((1, 1), (1, 9), (6, 1)), spread=0.6),
    "one level, one point, one channel": Case(shapes=((4, 3),), heads=1, channels=1, points=1),
    "more than a block of rows": Case(queries=9, heads=8, channels=32, points=1),
    "no queries": Case(queries=0),
}


def draw(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Value, locations and weights of a case, and a gradient of its result."""
    generator = torch.Generator().manual_seed(0)
    positions = sum(height * width for height, width in case.shapes)
    samples = (case.batch, case.queries, case.heads, len(case.shapes), case.points)
    value = torch.randn(case.batch, positions, case.heads, case.channels, generator=generator)
    locations = torch.rand(*samples, 2, generator=generator) * (1 + 2 * case.spread) - case.spread
    weights = torch.rand(samples, generator=generator)
    gradient = torch.randn(case.batch, case.queries, case.heads * case.channels, generator=generator)
    return [x.to(device, dtype) for x in (value, locations, weights, gradient)]


def run(case: Case, tensors: list[Tensor], backend: str) -> tuple[Tensor, ...]:
    """The result of a case and the gradients of value, locations and weights."""
    *inputs, gradient = (x.detach() for x in tensors)
    value, locations, weights = (x.requires_grad_() for x in inputs)
    output = ms_deform_attn(value, case.shapes, locations, weights, backend)
    return output.detach(), *torch.autograd.grad(output, (value, locations, weights), gradient)


def check(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Compare a backend, for inputs of a type, with the reference for the same numbers in float64."""
    tensors = draw(case, dtype, device)
    expected = run(case, [x.double() for x in tensors], "reference")
    # Sums are in float32; results are rounded to the type of the inputs.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    names = ("result", "gradient of value", "gradient of locations", "gradient of weights")
    for name, got, wanted in zip(names, run(case, tensors, backend), expected, strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape, name
        if wanted.numel():
            difference, largest = float((got.double() - wanted).abs().max()), float(wanted.abs().max())
            assert difference <= tolerance * max(1.0, largest), f"{name}: differs by {difference}, largest {largest}"


def main() -> None:
    """Compare the named backend on all cases in float32, and on one in reduced precision and deterministically."""
    backend = sys.argv[1]
    torch.set_num_threads(1)
    checks = [(name, torch.float32, False) for name in CASES]
    checks += [("around", dtype, False) for dtype in (torch.bfloat16, torch.float16)]
    checks += [("around", torch.float32, True), ("no queries", torch.float32, True)]
    for name, dtype, deterministic in checks:
        torch.use_deterministic_algorithms(deterministic)
        check(CASES[name], backend, dtype)
        sys.stdout.write(f"{name}, {dtype}, deterministic {deterministic}: agrees\n")


if __name__ == "__main__":
    main()
