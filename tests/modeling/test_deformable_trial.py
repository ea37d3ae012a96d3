"""Before `auto` takes Triton's kernels, they have to give the right numbers on the device at hand."""

import pytest
import torch

from mask2former.modeling.pixel_decoder.ops import trial, triton_backend
from mask2former.modeling.pixel_decoder.ops.reference import reference_forward

CASE = (torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _forget():
    trial.is_reliable.cache_clear()
    yield
    trial.is_reliable.cache_clear()


@pytest.mark.parametrize("backward", [False, True])
def test_right_numbers_are_relied_on(monkeypatch, backward):
    monkeypatch.setattr(triton_backend, "triton_forward", reference_forward)
    assert trial.is_reliable(*CASE, backward)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_wrong_numbers_are_not(monkeypatch, caplog, factor):
    monkeypatch.setattr(triton_backend, "triton_forward", lambda *args: factor * reference_forward(*args))
    assert not trial.is_reliable(*CASE, False)
    assert "plain PyTorch is used" in caplog.text


def test_wrong_gradients_are_not(monkeypatch):
    def forward(value, levels, locations, weights):
        return reference_forward(value, levels, locations, weights.detach()) + 0 * weights.sum()

    monkeypatch.setattr(triton_backend, "triton_forward", forward)
    assert trial.is_reliable(*CASE, False)
    assert not trial.is_reliable(*CASE, True)


def test_a_failure_is_said_once(monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("ptxas: unknown architecture")

    monkeypatch.setattr(triton_backend, "triton_forward", fail)
    assert not trial.is_reliable(*CASE, False)
    assert not trial.is_reliable(*CASE, False)
    assert caplog.text.count("fails on cpu, plain PyTorch is used: ptxas: unknown architecture") == 1
