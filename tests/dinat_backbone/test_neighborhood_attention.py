"""Neighborhood attention agrees with the published kernels and with its definition, and names errors in calls."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinat_backbone import BackboneConfigError, NeighborhoodAttention2D, neighborhood_attention_2d
from dinat_backbone.ops.cpp.build import why_not_buildable
from dinat_backbone.ops.dispatch import AUTO_ORDER, BACKENDS
from dinat_backbone.ops.tiling import tile_plans

from ..conftest import ROOT
from .calls import random_inputs, results

PARITY = ROOT / "tests" / "parity"
OP_CASES = json.loads((PARITY / "neighborhood_attention_2d.json").read_text())
MODULE_CASES = json.loads((PARITY / "neighborhood_attention_module.json").read_text())
# Largest absolute difference from the published kernels in float32, whose sums have another order.
TOLERANCE = 2e-5

needs_compiler = pytest.mark.skipif(why_not_buildable(11) is not None, reason="needs a C++ compiler with OpenMP")


@pytest.fixture(scope="module")
def published():
    return np.load(PARITY / "neighborhood_attention_2d.npz")


def difference(tensor: torch.Tensor, array: np.ndarray) -> float:
    assert tuple(tensor.shape) == array.shape
    return float((tensor.detach() - torch.from_numpy(array)).abs().max())


def draw_case(deterministic, case):
    name, k = case["name"], case["kernel_size"]
    shape = tuple(case[key] for key in ("batch", "height", "width", "heads", "head_dim"))
    shapes = {"q": shape, "k": shape, "v": shape, "rpb": (case["heads"], 2 * k - 1, 2 * k - 1), "grad": shape}
    return {key: torch.from_numpy(deterministic.draw(f"{name}.{key}", size)) for key, size in shapes.items()}


@pytest.mark.parametrize(
    "backend", ["reference", "tiled", "exportable", pytest.param("compiled", marks=needs_compiler)]
)
@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: case["name"])
def test_output_and_gradients_equal_the_published_kernels(case, backend, deterministic, published):
    tensors = draw_case(deterministic, case)
    inputs = {key: tensors[key].requires_grad_() for key in ("q", "k", "v", "rpb")}
    output = neighborhood_attention_2d(
        *inputs.values(), case["kernel_size"], case["dilation"], case["head_dim"] ** -0.5, backend
    )
    output.backward(tensors["grad"])
    assert difference(output, published[f"{case['name']}.out"]) < TOLERANCE
    for key, tensor in inputs.items():
        assert difference(tensor.grad, published[f"{case['name']}.d{key}"]) < TOLERANCE


@pytest.mark.parametrize("case", MODULE_CASES, ids=lambda case: case["name"])
def test_module_pads_small_maps_as_published(case, deterministic):
    module = NeighborhoodAttention2D(case["dim"], case["heads"], case["kernel_size"], case["dilation"])
    assert {key: list(value.shape) for key, value in module.state_dict().items()} == case["state"]
    weights = {key: deterministic.weight(f"{case['name']}.{key}", shape) for key, shape in case["state"].items()}
    module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    x = deterministic.draw(f"{case['name']}.x", [case[key] for key in ("batch", "height", "width", "dim")])
    published = np.load(PARITY / "neighborhood_attention_module.npz")
    assert difference(module(torch.from_numpy(x)), published[f"{case['name']}.out"]) < TOLERANCE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kernel_size=st.sampled_from([1, 3, 5, 7, 11]),
    dilation=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    with_bias=st.booleans(),
)
def test_tiled_equals_reference_for_any_size(kernel_size, dilation, extra, batch, heads, with_bias):
    height, width = (kernel_size * dilation + more for more in extra)
    inputs = random_inputs((batch, height, width, heads, 4), kernel_size, torch.float64, with_bias=with_bias)
    both = (results(inputs, kernel_size, dilation, backend) for backend in ("reference", "tiled"))
    for expected, got in zip(*both, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(6, 7, 3, 2), (9, 5, 3, 1), (5, 5, 5, 1)])
def test_gradcheck(size):
    height, width, kernel_size, dilation = size
    inputs = [x.requires_grad_() for x in random_inputs((1, height, width, 2, 3), kernel_size, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *x: neighborhood_attention_2d(*x, kernel_size, dilation, backend="tiled"), inputs, fast_mode=False
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_close_to_double(dtype):
    exact = random_inputs((1, 24, 23, 2, 32), 7, torch.float64)
    rounded = [x.to(dtype).requires_grad_() for x in exact]
    output = neighborhood_attention_2d(*rounded, 7, 3, backend="tiled")
    output.sum().backward()
    expected = neighborhood_attention_2d(*(x.detach().double() for x in rounded), 7, 3, backend="reference")
    assert output.dtype == dtype
    # Values are of order 1; results carry the rounding of probabilities and of the output itself.
    assert (output.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in rounded)


@pytest.mark.gpu
@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: case["name"])
def test_published_kernels_on_a_gpu(case, deterministic, published):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensors = {key: value.cuda() for key, value in draw_case(deterministic, case).items()}
    inputs = [tensors[key] for key in ("q", "k", "v", "rpb")]
    output = neighborhood_attention_2d(*inputs, case["kernel_size"], case["dilation"])
    assert difference(output.cpu(), published[f"{case['name']}.out"]) < TOLERANCE


def test_natten_serves_calls_without_bias_and_refuses_others():
    pytest.importorskip("natten", reason="NATTEN is optional and not installed")
    query, key, value, rpb = random_inputs((1, 25, 27, 2, 32), 7)
    expected = neighborhood_attention_2d(query, key, value, None, 7, 3, backend="reference")
    with torch.no_grad():
        got = neighborhood_attention_2d(query, key, value, None, 7, 3, backend="natten")
    assert (got - expected).abs().max() < TOLERANCE
    with pytest.raises(BackboneConfigError, match=r"no relative position bias since 0\.20"):
        neighborhood_attention_2d(query, key, value, rpb, 7, 3, backend="natten")


def test_natten_says_why_it_is_unavailable(monkeypatch):
    monkeypatch.setattr("dinat_backbone.ops.natten.util.find_spec", lambda name: None)
    query, key, value, _ = random_inputs((1, 9, 9, 2, 4), 3)
    with pytest.raises(BackboneConfigError, match="'natten' can't serve this call: NATTEN is not installed"):
        neighborhood_attention_2d(query, key, value, None, 3, 1, backend="natten")


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"reference"}))
def test_attention_dropout_is_served_by_the_reference_alone(backend):
    inputs = random_inputs((1, 9, 9, 2, 4), 3)
    plain = neighborhood_attention_2d(*inputs, 3, 1)
    assert not torch.equal(neighborhood_attention_2d(*inputs, 3, 1, dropout_p=0.5), plain)
    with pytest.raises(BackboneConfigError, match=f"attention backend '{backend}' can't serve this call: "):
        neighborhood_attention_2d(*inputs, 3, 1, backend=backend, dropout_p=0.5)


def test_the_order_of_auto_names_backends():
    assert {name for order in AUTO_ORDER.values() for name in order} <= set(BACKENDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"dilation": 4}, r"10 x 9 is smaller than kernel_size \* dilation = 3 \* 4"),
        (
            {"backend": "fast"},
            "unknown attention backend 'fast'; expected one of auto, compiled, triton, tiled, natten, reference",
        ),
        ({"rpb": torch.zeros(2, 3, 3)}, r"rpb must be .* \(2, 5, 5\), got \(2, 3, 3\)"),
        ({"key": torch.zeros(1, 10, 9, 2, 3)}, "key must be like query"),
        ({"value": torch.zeros(1, 10, 9, 2, 4, dtype=torch.float64)}, "value must be like query"),
        ({"query": torch.zeros(10, 9, 2, 4)}, r"query must be \[B, H, W, heads, channels\]"),
    ],
)
def test_bad_calls_say_what_was_expected(change, message):
    query, key, value, rpb = random_inputs((1, 10, 9, 2, 4), 3)
    call = {"query": query, "key": key, "value": value, "rpb": rpb, "kernel_size": 3, "dilation": 1} | change
    with pytest.raises(ValueError, match=message):
        neighborhood_attention_2d(**call)


def test_integer_maps_are_refused():
    query = torch.zeros(1, 9, 9, 1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="floating-point type"):
        neighborhood_attention_2d(query, query, query, None, 3, 1)


def test_autocast_does_not_lower_the_inputs_precision():
    inputs = random_inputs((1, 12, 12, 2, 8), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = neighborhood_attention_2d(*inputs, 3, 1)
    torch.testing.assert_close(output, neighborhood_attention_2d(*inputs, 3, 1), rtol=0, atol=0)


def test_no_work_grows_with_the_square_of_the_map():
    """The number of scores per query does not grow with the map, for any length."""
    per_query = {length: min(plan.scores for plan in tile_plans(length, 11, 16)) / length for length in range(11, 400)}
    assert max(per_query.values()) < 3.1 * 11
    assert per_query[399] <= per_query[64] * 1.1


def test_nothing_of_the_size_of_all_pairs_is_allocated():
    """The largest tensor for a 96 x 96 map is far smaller than its (96 * 96) ** 2 pairs of positions."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return result

    inputs = [x.requires_grad_() for x in random_inputs((1, 96, 96, 1, 8), 11)]
    with Watch():
        neighborhood_attention_2d(*inputs, 11, 1, backend="tiled").sum().backward()
    assert 96 * 96 * 8 <= largest < (96 * 96) ** 2 / 50
