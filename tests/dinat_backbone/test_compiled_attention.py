"""The C++ kernel agrees with the definition, and `auto` does without it if it can't be built."""

import logging
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinat_backbone import neighborhood_attention_2d
from dinat_backbone.ops import compiled
from dinat_backbone.ops.cpp import build

from .calls import random_inputs, results

needs_compiler = pytest.mark.skipif(build.why_not_buildable(11) is not None, reason="needs a C++ compiler with OpenMP")


def inputs_of(shape, kernel_size, dtype=torch.float32):
    return random_inputs(shape, kernel_size, dtype, projected=True)


def compare(inputs, kernel_size, dilation, threads=1):
    """Compare the kernel with the reference in float64."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = results(inputs, kernel_size, dilation, "compiled")
    finally:
        torch.set_num_threads(before)
    expected = results(inputs, kernel_size, dilation, "reference", torch.float64)
    for result, true in zip(got, expected, strict=True):
        torch.testing.assert_close(result.double(), true, rtol=2e-6, atol=1e-5)


@needs_compiler
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kernel_size=st.sampled_from([3, 7, 11]),
    dilation=st.integers(1, 4),
    extra=st.tuples(st.integers(0, 12), st.integers(0, 24)),
    batch=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 3, 4, 16]),
    channels=st.sampled_from([1, 4, 8, 12, 32]),
    with_bias=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
)
def test_equals_the_reference_for_any_size(kernel_size, dilation, extra, batch, heads, channels, with_bias, threads):
    height, width = (kernel_size * dilation + more for more in extra)
    inputs = random_inputs((batch, height, width, heads, channels), kernel_size, with_bias=with_bias, projected=True)
    # With more threads than heads and groups, maps are also cut into bands.
    compare(inputs, kernel_size, dilation, threads)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="disables instructions of x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_processors_with_shorter_vectors(without, monkeypatch, nothing_built):
    monkeypatch.setenv("CXX", f"{build.compiler()[0]} {without}")
    compare(inputs_of((1, 14, 19, 16, 20), 3), 3, 2)  # with enough heads to interleave them


@needs_compiler
def test_kernel_sizes_with_more_keys_per_row_than_registers():
    compare(inputs_of((1, 20, 19, 1, 8), 17), 17, 1)


@needs_compiler
def test_the_same_call_gives_the_same_bits():
    inputs = inputs_of((1, 40, 41, 2, 8), 7)
    first, second = (results(inputs, 7, 2, "compiled") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same_bits(got, expected):
    """Compare bfloat16 tensors bit by bit, except that any NaN equals any other."""
    assert got.dtype == expected.dtype == torch.bfloat16
    numbers = ~expected.isnan()
    assert torch.equal(~got.isnan(), numbers)
    assert torch.equal(got.view(torch.int16)[numbers], expected.view(torch.int16)[numbers])


@needs_compiler
@pytest.mark.parametrize("channels", [32, 13])
def test_bfloat16_is_computed_in_float32(channels):
    inputs = inputs_of((1, 24, 23, 2, channels), 7, torch.bfloat16)
    *got, of_bias = results(inputs, 7, 3, "compiled")
    *exact, exact_of_bias = results(inputs, 7, 3, "compiled", torch.float32)
    for result, expected in zip(got, exact, strict=True):
        assert_same_bits(result, expected.bfloat16())
    assert torch.equal(of_bias, exact_of_bias)


@needs_compiler
@pytest.mark.parametrize("channels", [32, 13])
def test_bfloat16_is_rounded_as_by_torch(channels):
    """Each query gets the mean of two neighbouring numbers: ties, subnormal numbers, infinity and NaN."""
    shape, generator = (1, 12, 40, 2, channels), torch.Generator().manual_seed(0)
    # Bits of both signs, of exponents from 0 to 255, that grow by one per column.
    first = torch.arange(2 * channels).view(2, channels) * 0x8000 // (2 * channels)
    first -= torch.randint(0, 2, first.shape, generator=generator) * 0x8000
    bits = first + torch.arange(shape[2])[:, None, None]
    bits[-1, :, ::2], bits[0, :, 1] = 0x7F80, 0x7F81
    value = bits.to(torch.int16).view(torch.bfloat16).expand(shape)
    rpb = torch.full((2, 5, 5), -1000.0)
    rpb[:, 2, 2:4] = 0
    zeros = torch.zeros(shape, dtype=torch.bfloat16)
    got = neighborhood_attention_2d(zeros, zeros, value, rpb, 3, 1, backend="compiled")
    exact = neighborhood_attention_2d(zeros.float(), zeros.float(), value.float(), rpb, 3, 1, backend="compiled")
    ties = (exact.view(torch.int32) & 0xFFFF) == 0x8000
    assert ties.float().mean() > 0.8
    assert exact.isnan().any() and exact.isinf().any() and (ties & (exact.abs() < 2.0**-126)).any()
    assert_same_bits(got, exact.bfloat16())


@needs_compiler
def test_scores_of_any_magnitude():
    query, key, value, rpb = inputs_of((1, 12, 13, 1, 8), 3)
    inputs = (query * 100, key * 100, value, rpb - 500)
    output = neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    expected = neighborhood_attention_2d(*(x.double() for x in inputs), 3, 1, backend="reference")
    # Scores of 10000 have a precision of 1e-3 only.
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=5e-3)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_the_output(bad):
    query, key, value, rpb = inputs_of((1, 12, 13, 1, 8), 3)
    query[0, 5, 6, 0, 2] = bad
    output = neighborhood_attention_2d(query, key, value, rpb, 3, 1, backend="compiled")
    wrong = output.isnan().any(-1)[0, :, :, 0].nonzero().tolist()
    assert wrong == [[5, 6]]


@needs_compiler
def test_memory_of_the_backward_pass():
    """Only the inputs and one number per query and head are kept."""
    inputs = [x.requires_grad_() for x in inputs_of((1, 64, 64, 4, 32), 11)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        neighborhood_attention_2d(*inputs, 11, 1, backend="compiled")
    assert sum(x.numel() for x in saved) < 3.1 * inputs[0].numel()


@needs_compiler
def test_torch_compile_sees_one_operator():
    inputs = inputs_of((1, 12, 13, 2, 8), 3)
    call = torch.compile(lambda *x: neighborhood_attention_2d(*x, 3, 2), fullgraph=True, backend="eager")
    torch.testing.assert_close(call(*inputs), neighborhood_attention_2d(*inputs, 3, 2), rtol=0, atol=0)


@needs_compiler
def test_operators_are_well_formed():
    inputs = [x.detach().requires_grad_() for x in inputs_of((1, 9, 10, 2, 4), 3)]
    torch.library.opcheck(torch.ops.dinat_backbone.neighborhood_attention_2d.default, (*inputs, 3, 2, 0.5, True))


def test_other_types_are_refused_by_name_and_served_by_auto():
    inputs = [x.double() for x in inputs_of((1, 9, 9, 1, 4), 3)]
    with pytest.raises(ValueError, match=r"'compiled' can't serve this call: .* got torch.float64"):
        neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    assert neighborhood_attention_2d(*inputs, 3, 1).dtype == torch.float64


def test_on_the_meta_device_it_gives_shapes_without_a_kernel(monkeypatch):
    monkeypatch.setattr(compiled, "_why_not_built", lambda *_, **__: "there is no compiler")
    meta = [x.to("meta") for x in inputs_of((1, 9, 9, 1, 4), 3)]
    assert neighborhood_attention_2d(*meta, 3, 1, backend="compiled").shape == meta[0].shape


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    """Start from the state of a new process with an empty cache."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cached = (build.why_not_buildable, build.library, compiled.warn_once)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CXX", "no-such-compiler", "no C[+][+] compiler found .looked for no-such-compiler."),
        ("CXX", "false", "false .* failed: exit status 1"),
        (build.SWITCH, "0", "switched off by DINAT_COMPILED_ATTENTION=0"),
    ],
)
def test_without_a_compiler(variable, value, reason, monkeypatch, caplog, nothing_built):
    monkeypatch.setenv(variable, value)
    inputs = inputs_of((1, 9, 9, 1, 4), 3)
    with pytest.raises(ValueError, match=f"backend 'compiled' can't serve this call: .*{reason}"):
        neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    with caplog.at_level(logging.WARNING, logger="dinat_backbone"):
        for _ in range(2):
            output = neighborhood_attention_2d(*inputs, 3, 1)
    torch.testing.assert_close(output, neighborhood_attention_2d(*inputs, 3, 1, backend="tiled"), rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert "plain PyTorch" in caplog.text


@pytest.mark.slow
@needs_compiler
def test_simultaneous_builds_do_not_collide(nothing_built):
    # Threads stand in for processes, which share only files.
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(build.build, [1, 1]))
    assert paths[0] == paths[1]
    assert list((nothing_built / "dinat_backbone").iterdir()) == paths[:1]
