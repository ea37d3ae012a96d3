"""The Triton kernels in Triton's interpreter, on the CPU; `test_triton_attention` runs this in a process of its own."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from dinat_backbone import BackboneConfigError, neighborhood_attention_2d
from dinat_backbone.ops.dispatch import BACKENDS
from dinat_backbone.ops.triton_kernels import launch
from dinat_backbone.ops.triton_kernels.launch import Launch, Launches, launches

from ..conftest import ROOT
from .calls import random_inputs, results

PARITY = ROOT / "tests" / "parity"
CASES = json.loads((PARITY / "neighborhood_attention_2d.json").read_text())
# Largest absolute difference in float32, as for the other backends.
TOLERANCE = 2e-5
DTYPES = (torch.float32, torch.bfloat16)
# The time of the interpreter depends on the number of operations, not on the size of the blocks.
LARGE = Launches(*[Launch(128, 256, 1, 1)] * 3, Launch(32, 1024, 1, 1))


@pytest.fixture(scope="module", autouse=True)
def quick_interpreter():
    """Skip what takes most of the time of the interpreter: overflow checks, and the preparation of calls of helpers."""
    call, builder = interpreter.InterpretedFunction.__call__, interpreter.interpreter_builder

    def call_prepared(function, *args, **kwargs):
        if function.fn.__module__.startswith("triton."):
            return call(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        patch.setattr(interpreter.InterpretedFunction, "__call__", call_prepared)
        yield


@pytest.fixture
def large_tiles(monkeypatch):
    monkeypatch.setattr(launch, "launches", lambda dtype, channels: LARGE)


def compare(inputs, kernel_size, dilation, tolerance=TOLERANCE):
    expected = results(inputs, kernel_size, dilation, "reference", torch.float64)
    for got, true in zip(results(inputs, kernel_size, dilation, "triton"), expected, strict=True):
        assert got.shape == true.shape
        assert float((got - true).abs().max()) < tolerance * max(1.0, float(true.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.usefixtures("large_tiles")
def test_output_and_gradients_equal_the_published_kernels(case, deterministic):
    published = np.load(PARITY / "neighborhood_attention_2d.npz")
    name, k = case["name"], case["kernel_size"]
    shape = tuple(case[key] for key in ("batch", "height", "width", "heads", "head_dim"))
    shapes = {"q": shape, "k": shape, "v": shape, "rpb": (case["heads"], 2 * k - 1, 2 * k - 1), "grad": shape}
    tensors = {key: torch.from_numpy(deterministic.draw(f"{name}.{key}", size)) for key, size in shapes.items()}
    gradient = tensors.pop("grad")
    inputs = [x.requires_grad_() for x in tensors.values()]
    output = neighborhood_attention_2d(*inputs, k, case["dilation"], backend="triton")
    output.backward(gradient)
    for key, result in zip(
        ("out", "dq", "dk", "dv", "drpb"), (output.detach(), *(x.grad for x in inputs)), strict=True
    ):
        assert np.abs(result.numpy() - published[f"{name}.{key}"]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation", "with_bias"),
    [
        # Head sizes that are not powers of two, maps that are not multiples of a tile, groups of two lengths.
        ((1, 17, 13, 1, 32), 11, 1, True),
        ((2, 7, 9, 1, 20), 3, 2, True),
        ((1, 9, 6, 2, 8), 5, 1, False),
        ((1, 3, 4, 1, 100), 1, 2, True),
    ],
)
def test_shipped_tiles_equal_the_reference(shape, kernel_size, dilation, with_bias):
    compare(random_inputs(shape, kernel_size, with_bias=with_bias), kernel_size, dilation)


@pytest.mark.parametrize("kernel_size", [1, 3, 7, 11, 13, 21, 63])
@pytest.mark.parametrize("sizes", [LARGE, *{launches(dtype, d) for dtype in DTYPES for d in (32, 128)}])
def test_no_tile_reaches_out_of_the_expanded_bias(kernel_size, sizes):
    """Check all positions of a tile of queries or keys relative to the border."""
    lead = sizes.lead(kernel_size)
    rows = 2 * lead + kernel_size
    for tile in (sizes.forward, sizes.query, sizes.key):
        height, _, window = tile.sides(kernel_size)
        step = max(tile.block, window) // window
        for length in {kernel_size, kernel_size + 1, kernel_size + height + 3, 3 * kernel_size + 2 * height}:
            start = [min(max(x - kernel_size // 2, 0), length - kernel_size) for x in range(length)]
            for first in range(0, length, height):
                last = min(first + height, length) - 1
                keys = range(start[first], start[first] + -(-(start[last] + kernel_size - start[first]) // step) * step)
                steps = {key - start[min(x, length - 1)] for x in range(first, first + height) for key in keys}
                seeing = [x for x in range(length) if start[x] <= last and start[x] + kernel_size > first]
                assert seeing == list(range(seeing[0], seeing[-1] + 1))
                queries = range(seeing[0], seeing[0] + -(-len(seeing) // step) * step)
                steps |= {key - start[min(x, length - 1)] for x in queries for key in range(first, first + height)}
                assert -lead <= min(steps) and max(steps) < rows - lead


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    kernel_size=st.sampled_from([3, 5, 7, 9, 15]),
    dilation=st.integers(1, 2),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    channels=st.integers(8, 48),
    with_bias=st.booleans(),
    tile=st.sampled_from([64, 128]),
)
def test_any_size_equals_the_reference(kernel_size, dilation, extra, channels, with_bias, tile):
    height, width = (kernel_size * dilation + more for more in extra)
    sizes = Launches(*[Launch(tile, 256, 1, 1)] * 3, Launch(16, 512, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launches", lambda dtype, channels: sizes)
        compare(random_inputs((1, height, width, 1, channels), kernel_size, with_bias=with_bias), kernel_size, dilation)


@pytest.mark.usefixtures("large_tiles")
def test_float16_is_close_to_double():
    # Probabilities and score gradients are rounded before they are multiplied, results once more.
    compare(random_inputs((1, 15, 12, 1, 32), 5, dtype=torch.float16), 5, 2, 4 * torch.finfo(torch.float16).eps)


@pytest.mark.usefixtures("large_tiles")
def test_bfloat16_is_close_to_double(monkeypatch):
    """The interpreter multiplies the bits of bfloat16 numbers as integers; this test makes it convert them first."""
    inputs = random_inputs((1, 15, 12, 1, 32), 5, dtype=torch.bfloat16)
    with pytest.raises(BackboneConfigError, match="interpreter can't multiply bfloat16"):
        neighborhood_attention_2d(*inputs, 5, 2, backend="triton")
    builder, handle_of = interpreter.interpreter_builder, interpreter.TensorHandle
    multiply = builder.create_dot

    def convert(handle):
        if handle.dtype != tl.bfloat16:
            return handle
        return handle_of((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(builder, "create_dot", lambda a, b, *rest: multiply(convert(a), convert(b), *rest))
    monkeypatch.setitem(BACKENDS, "triton", dataclasses.replace(BACKENDS["triton"], why_not=lambda call: None))
    # Twice the tolerance of rounding, because the interpreter truncates where devices round.
    compare(inputs, 5, 2, 8 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.usefixtures("large_tiles")
def test_parts_of_one_projection_large_maps_and_frozen_bias(monkeypatch):
    # Offsets have 64 bits, as for large maps.
    monkeypatch.setattr(launch, "WIDE_FROM", 0)
    projection = torch.randn(1, 9, 11, 3, 2, 16)
    *qkv, rpb = (*projection.unbind(3), torch.randn(2, 5, 5))
    for x in qkv:
        x.requires_grad_()
    output = neighborhood_attention_2d(*qkv, rpb, 3, 2, backend="triton")
    expected = neighborhood_attention_2d(*qkv, rpb, 3, 2, backend="reference")
    assert (output - expected).abs().max() < TOLERANCE
    gradients, truth = (torch.autograd.grad(x.square().sum(), qkv) for x in (output, expected))
    for got, true in zip(gradients, truth, strict=True):
        assert (got - true).abs().max() < TOLERANCE * 10


@pytest.mark.usefixtures("large_tiles")
def test_torch_compile_takes_it_whole():
    inputs = [x.requires_grad_() for x in random_inputs((1, 7, 8, 1, 16), 3)]
    whole = torch.compile(neighborhood_attention_2d, fullgraph=True, backend="aot_eager")
    outputs = [f(*inputs, 3, 2, backend="triton") for f in (neighborhood_attention_2d, whole)]
    gradients = [torch.autograd.grad(x.sum(), inputs) for x in outputs]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
