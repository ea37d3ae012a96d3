"""The step of several small batches is that of one large batch."""

import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.engine import NonFiniteLossError

from ..conftest import ROOT
from .accumulating import config, images, train, untrained


def require_equal_steps(weights, other, start, tolerance=1e-3):
    """Check that two steps from `start` are equal up to rounding in float32."""
    assert weights.keys() == other.keys() == start.keys()
    for name, value in weights.items():
        step, other_step = value - start[name], other[name] - start[name]
        assert (step - other_step).norm() <= tolerance * step.norm() + 1e-6, name


@pytest.mark.parametrize(
    ("targets", "parts", "opts"),
    [
        ((3, 1, 12, 2), 4, ()),
        ((0, 0, 5, 1), 2, ("MODEL.MASK_FORMER.IGNORE_VOID", "True")),
        ((0, 0), 2, ()),
    ],
)
def test_small_batches_give_the_weights_and_losses_of_the_large_one(targets, parts, opts):
    """Also without targets, with more targets than queries (8), and with an image of void pixels."""
    cfg, batch = config(*opts), images(targets)
    whole, whole_losses = train(cfg, [batch], 1)
    start = untrained(cfg).state_dict()
    assert any((value - start[name]).norm() > 1e-2 for name, value in whole.state_dict().items())
    size = len(batch) // parts
    small = [batch[first : first + size] for first in range(0, len(batch), size)]
    accumulated, losses = train(cfg, small, parts)
    require_equal_steps(accumulated.state_dict(), whole.state_dict(), start)
    assert losses == pytest.approx(whole_losses, rel=1e-4, abs=1e-6)
    if targets == (3, 1, 12, 2):
        # Which a mean of the parts' losses would not be.
        means = [train(cfg, [part], 1)[1]["total_loss"] for part in small]
        assert sum(means) / parts != pytest.approx(whole_losses["total_loss"], rel=1e-2)


def test_a_loss_that_is_not_finite_in_a_later_batch_stops_before_the_weights_change(monkeypatch):
    cfg, batch = config(), images((2, 2))
    start = untrained(cfg)
    broken = {**batch[1], "image": torch.full((3, 64, 64), float("nan"))}
    kept = []
    monkeypatch.setattr("tests.engine.accumulating.build_model", lambda cfg: kept.append(build_model(cfg)) or kept[-1])
    with pytest.raises(NonFiniteLossError, match=r"iteration 0: .*images of the batch: 1\.jpg"):
        train(cfg, [batch[:1], [broken]], 2)
    assert all(torch.equal(a, b) for a, b in zip(kept[0].parameters(), start.parameters(), strict=True))


@pytest.mark.slow
def test_two_processes_accumulate_as_they_would_share_a_large_batch(tmp_path):
    """With activation checkpointing and a frozen first level, whose parameters have no gradients to add up."""
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.engine.accumulating", tmp_path], cwd=ROOT, check=True)
    found = {path.stem: torch.load(path) for path in tmp_path.glob("*.pth")}
    assert found.keys() == {"0_0", "1_0", "1_1", "4_0", "4_1"}
    # Where one of the uncertain points is chosen by a hair, it is another one: 0.3% of the step of a layer.
    require_equal_steps(found["4_0"]["model"], found["1_0"]["model"], found["0_0"]["model"], tolerance=1e-2)
    assert found["4_0"]["losses"] == pytest.approx(found["1_0"]["losses"], rel=1e-4)
    # Both processes have the same weights, made of different images.
    assert all(torch.equal(value, found["4_1"]["model"][name]) for name, value in found["4_0"]["model"].items())
    assert found["4_1"]["losses"] == {}
