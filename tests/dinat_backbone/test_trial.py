"""Before `auto` uses Triton's kernels, they have to give the right numbers on the device at hand."""

import re

import pytest
import torch

from dinat_backbone import neighborhood_attention_2d
from dinat_backbone.ops import reference
from dinat_backbone.ops.dispatch import AUTO_ORDER, BACKENDS, Backend
from dinat_backbone.ops.triton_backend import try_attention_kernels

CASE = (torch.device("cpu"), torch.float32, 3, 8)


@pytest.fixture(autouse=True)
def _forget():
    try_attention_kernels.cache_clear()
    yield
    try_attention_kernels.cache_clear()


@pytest.fixture
def replace_kernels(monkeypatch):
    """Put a function in the place of the kernels."""
    return lambda forward: monkeypatch.setattr("dinat_backbone.ops.triton_backend.forward", forward)


@pytest.mark.parametrize("backward", [False, True])
def test_right_numbers_are_relied_on(replace_kernels, backward):
    replace_kernels(reference.forward)
    assert try_attention_kernels(*CASE, backward) is None


def test_wrong_numbers_are_not(replace_kernels, caplog):
    replace_kernels(lambda call: reference.forward(call) * 1.01)
    assert try_attention_kernels(*CASE, False)
    assert re.search(r"fail on cpu, plain PyTorch is used: results are off by 0\.0[01]\d*", caplog.text)


def test_wrong_gradients_are_not(replace_kernels):
    replace_kernels(lambda call: reference.forward(call._replace(value=call.value.detach() + 0 * call.value)))
    assert try_attention_kernels(*CASE, False) is None
    assert try_attention_kernels(*CASE, True)


def test_what_is_not_a_number_is_not(replace_kernels):
    replace_kernels(lambda call: reference.forward(call) * float("nan"))
    assert try_attention_kernels(*CASE, False)


def test_a_failure_is_logged_once(replace_kernels, caplog):
    def fail(call):
        raise RuntimeError("ptxas: unknown architecture")

    replace_kernels(fail)
    assert try_attention_kernels(*CASE, False)
    assert try_attention_kernels(*CASE, False)
    assert caplog.text.count("fail on cpu, plain PyTorch is used: ptxas: unknown architecture") == 1


@pytest.mark.parametrize(("reason", "expected"), [(None, [1, 1]), ("it is off by 1", [1])])
def test_auto_passes_over_a_backend_that_fails_its_trial(reason, expected, monkeypatch):
    calls = []

    def forward(call):
        calls.append(1)
        return call.value

    tried = Backend(lambda call: None, forward, why_not_auto=lambda call: reason)
    monkeypatch.setitem(BACKENDS, "triton", tried)
    monkeypatch.setitem(AUTO_ORDER, "cpu", ("triton", "tiled"))
    inputs = [torch.randn(1, 5, 5, 1, 8) for _ in range(3)]
    neighborhood_attention_2d(*inputs, None, 3, 1, backend="triton")
    neighborhood_attention_2d(*inputs, None, 3, 1)
    assert calls == expected
