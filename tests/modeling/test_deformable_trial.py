"""Before `auto` uses Triton's kernels, they have to give the right numbers on the device at hand."""

import pytest
import torch

from mask2former.modeling.pixel_decoder.ops import ms_deform_attn, reference
from mask2former.modeling.pixel_decoder.ops.dispatch import AUTO_ORDER, BACKENDS, DeformableBackend
from mask2former.modeling.pixel_decoder.ops.triton_backend import try_deformable_kernels

from .deformable import Case, draw

CASE = (torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _forget():
    try_deformable_kernels.cache_clear()
    yield
    try_deformable_kernels.cache_clear()


@pytest.fixture
def replace_kernels(monkeypatch):
    """Put a function in the place of the kernels."""
    name = "mask2former.modeling.pixel_decoder.ops.triton_backend.forward"
    return lambda forward: monkeypatch.setattr(name, forward)


@pytest.mark.parametrize("backward", [False, True])
def test_right_numbers_are_relied_on(replace_kernels, backward):
    replace_kernels(reference.forward)
    assert try_deformable_kernels(*CASE, backward) is None


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_wrong_numbers_are_not(replace_kernels, caplog, factor):
    replace_kernels(lambda *args: factor * reference.forward(*args))
    assert try_deformable_kernels(*CASE, False)
    assert "plain PyTorch is used" in caplog.text


def test_wrong_gradients_are_not(replace_kernels):
    def forward(value, shapes, locations, weights):
        return reference.forward(value, shapes, locations, weights.detach()) + 0 * weights.sum()

    replace_kernels(forward)
    assert try_deformable_kernels(*CASE, False) is None
    assert try_deformable_kernels(*CASE, True)


def test_a_failure_is_logged_once(replace_kernels, caplog):
    def fail(*args):
        raise RuntimeError("ptxas: unknown architecture")

    replace_kernels(fail)
    assert try_deformable_kernels(*CASE, False)
    assert try_deformable_kernels(*CASE, False)
    assert caplog.text.count("fails on cpu, plain PyTorch is used: ptxas: unknown architecture") == 1


@pytest.mark.parametrize(("reason", "expected"), [(None, [1, 1]), ("it is off by 1", [1])])
def test_auto_passes_over_a_backend_that_fails_its_trial(reason, expected, monkeypatch):
    calls = []

    def forward(*args):
        calls.append(1)
        return reference.forward(*args)

    tried = DeformableBackend(lambda value: None, forward, why_not_auto=lambda value: reason)
    monkeypatch.setitem(BACKENDS, "triton", tried)
    monkeypatch.setitem(AUTO_ORDER, "cpu", ("triton", "gather"))
    value, locations, weights, _ = draw(Case(), torch.float32)
    for backend in ("triton", "auto"):
        ms_deform_attn(value, Case().shapes, locations, weights, backend)
    assert calls == expected
