"""The C++ kernel against the definition, and what happens where it can't be built."""

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

needs_compiler = pytest.mark.skipif(build.why_not_buildable(11) is not None, reason="needs a C++ compiler with OpenMP")


def random_inputs(shape, kernel_size, dtype=torch.float32):
    # As a projection gives them: parts of one tensor, so with strides of their own.
    query, key, value = torch.randn(*shape[:3], 3, *shape[3:]).to(dtype).unbind(3)
    return query, key, value, torch.randn(shape[3], 2 * kernel_size - 1, 2 * kernel_size - 1)


def results(inputs, kernel_size, dilation, backend, dtype):
    inputs = [x if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    output = neighborhood_attention_2d(*inputs, kernel_size, dilation, backend=backend)
    gradient = torch.linspace(-1, 1, output.numel()).sin().view(output.shape).to(output.dtype)
    leaves = [x for x in inputs if x is not None]
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


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
    *maps, rpb = random_inputs((batch, height, width, heads, channels), kernel_size)
    inputs = [*maps, rpb if with_bias else None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # more than there is work for: maps are also cut into bands
    try:
        got = results(inputs, kernel_size, dilation, "compiled", torch.float32)
    finally:
        torch.set_num_threads(before)
    expected = results(inputs, kernel_size, dilation, "reference", torch.float64)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-6, atol=1e-5)


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches off instructions of x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_processors_with_shorter_vectors(without, monkeypatch, nothing_built):
    monkeypatch.setenv("CXX", f"{build.compiler()[0]} {without}")
    inputs = random_inputs((1, 14, 19, 16, 20), 3)  # heads enough to be interleaved
    got = results(inputs, 3, 2, "compiled", torch.float32)
    for g, e in zip(got, results(inputs, 3, 2, "reference", torch.float64), strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-6, atol=1e-5)


@needs_compiler
def test_kernel_sizes_of_more_keys_a_row_than_registers():
    inputs = random_inputs((1, 20, 19, 1, 8), 17)
    got = results(inputs, 17, 1, "compiled", torch.float32)
    for g, e in zip(got, results(inputs, 17, 1, "reference", torch.float64), strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-6, atol=1e-5)


@needs_compiler
def test_the_same_call_gives_the_same_bits():
    inputs = random_inputs((1, 40, 41, 2, 8), 7)
    first, second = (results(inputs, 7, 2, "compiled", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_compiler
def test_bfloat16_is_computed_in_float32():
    inputs = random_inputs((1, 24, 23, 2, 32), 7, torch.bfloat16)
    output = neighborhood_attention_2d(*inputs, 7, 3, backend="compiled")
    exact = neighborhood_attention_2d(*(x.float() for x in inputs), 7, 3, backend="compiled")
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, exact.bfloat16(), rtol=0, atol=0)


@needs_compiler
def test_scores_of_any_magnitude():
    query, key, value, rpb = random_inputs((1, 12, 13, 1, 8), 3)
    inputs = (query * 100, key * 100, value, rpb - 500)
    output = neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    expected = neighborhood_attention_2d(*(x.double() for x in inputs), 3, 1, backend="reference")
    # Scores of 10000 are known to 1e-3 only.
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=5e-3)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad):
    query, key, value, rpb = random_inputs((1, 12, 13, 1, 8), 3)
    query[0, 5, 6, 0, 2] = bad
    output = neighborhood_attention_2d(query, key, value, rpb, 3, 1, backend="compiled")
    wrong = output.isnan().any(-1)[0, :, :, 0].nonzero().tolist()
    assert wrong == [[5, 6]]


@needs_compiler
def test_memory_of_the_backward_pass():
    """Nothing but the inputs and one number per query and head is kept."""
    inputs = [x.requires_grad_() for x in random_inputs((1, 64, 64, 4, 32), 11)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        neighborhood_attention_2d(*inputs, 11, 1, backend="compiled")
    assert sum(x.numel() for x in saved) < 3.1 * inputs[0].numel()


@needs_compiler
def test_torch_compile_sees_one_operator():
    inputs = random_inputs((1, 12, 13, 2, 8), 3)
    call = torch.compile(lambda *x: neighborhood_attention_2d(*x, 3, 2), fullgraph=True, backend="eager")
    torch.testing.assert_close(call(*inputs), neighborhood_attention_2d(*inputs, 3, 2), rtol=0, atol=0)


@needs_compiler
def test_operators_describe_themselves_rightly():
    inputs = [x.detach().requires_grad_() for x in random_inputs((1, 9, 10, 2, 4), 3)]
    torch.library.opcheck(torch.ops.dinat_backbone.neighborhood_attention_2d.default, (*inputs, 3, 2, 0.5, True))


def test_other_types_and_devices_go_elsewhere():
    inputs = [x.double() for x in random_inputs((1, 9, 9, 1, 4), 3)]
    with pytest.raises(ValueError, match=r"'compiled' can't serve this call: .* got torch.float64"):
        neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    meta = [x.to("meta") for x in inputs]
    with pytest.raises(ValueError, match="CPU alone, got a tensor on meta"):
        neighborhood_attention_2d(*meta, 3, 1, backend="compiled")
    assert neighborhood_attention_2d(*inputs, 3, 1).dtype == torch.float64


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    """As in a new process with an empty cache."""
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
    inputs = random_inputs((1, 9, 9, 1, 4), 3)
    with pytest.raises(ValueError, match=f"backend 'compiled' can't serve this call: .*{reason}"):
        neighborhood_attention_2d(*inputs, 3, 1, backend="compiled")
    with caplog.at_level(logging.WARNING, logger="dinat_backbone"):
        for _ in range(2):
            output = neighborhood_attention_2d(*inputs, 3, 1)
    torch.testing.assert_close(output, neighborhood_attention_2d(*inputs, 3, 1, backend="tiled"), rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert "plain PyTorch" in caplog.text


@needs_compiler
def test_builds_at_the_same_time_do_not_collide(nothing_built):
    # Threads stand for processes: what they could collide in are files.
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(build.build, [1, 1]))
    assert paths[0] == paths[1]
    assert list((nothing_built / "dinat_backbone").iterdir()) == paths[:1]
