"""Before `auto` takes Triton's kernels, they have to give the right numbers on the device at hand."""

import re

import pytest
import torch

from dinat_backbone.ops import trial, triton_backend
from dinat_backbone.ops.reference import reference_forward

CASE = (torch.device("cpu"), torch.float32, 3, 8)


@pytest.fixture(autouse=True)
def _forget():
    trial.is_reliable.cache_clear()
    yield
    trial.is_reliable.cache_clear()


@pytest.mark.parametrize("backward", [False, True])
def test_right_numbers_are_relied_on(monkeypatch, backward):
    monkeypatch.setattr(triton_backend, "triton_forward", lambda *args: (reference_forward(*args),))
    assert trial.is_reliable(*CASE, backward)


def test_wrong_numbers_are_not(monkeypatch, caplog):
    monkeypatch.setattr(triton_backend, "triton_forward", lambda *args: (reference_forward(*args) * 1.01,))
    assert not trial.is_reliable(*CASE, False)
    assert re.search(r"are off by 0\.0[01]\d* on cpu, plain PyTorch is used", caplog.text)


def test_wrong_gradients_are_not(monkeypatch):
    def forward(query, key, value, rpb, *settings):
        return (reference_forward(query, key, value.detach() + 0 * value, rpb, *settings),)

    monkeypatch.setattr(triton_backend, "triton_forward", forward)
    assert trial.is_reliable(*CASE, False)
    assert not trial.is_reliable(*CASE, True)


def test_nothing_at_all_is_not(monkeypatch, caplog):
    monkeypatch.setattr(triton_backend, "triton_forward", lambda *args: (reference_forward(*args) * float("nan"),))
    assert not trial.is_reliable(*CASE, False)

    def fail(*args):
        raise RuntimeError("ptxas: unknown architecture")

    trial.is_reliable.cache_clear()
    monkeypatch.setattr(triton_backend, "triton_forward", fail)
    assert not trial.is_reliable(*CASE, False)
    assert not trial.is_reliable(*CASE, False)
    assert caplog.text.count("fail on cpu, plain PyTorch is used: ptxas: unknown architecture") == 1
