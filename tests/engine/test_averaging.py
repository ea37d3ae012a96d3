import pytest
import torch
from torch import nn

from mask2former.checkpoint import AVERAGE_KEY, Checkpointer
from mask2former.config import ConfigError
from mask2former.engine.hooks import build_average


def model(value=0.0):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def follow(average, values):
    for value in values:
        average.update_parameters(model(value))
    return float(average.module.weight)


def test_the_average_follows_with_a_decay_that_warms_up():
    values = [1.0, 4.0, -2.0, 7.0, 5.0]
    expected = values[0]
    # After n updates (1 + n) / (10 + n) of the average is kept, until that is more than the decay.
    for value, decay in zip(values[1:], [2 / 11, 3 / 12, 0.3, 0.3], strict=True):
        expected = decay * expected + (1 - decay) * value
    assert follow(build_average(model(), 0.3), values) == pytest.approx(expected)
    # Without decay the average is the last model.
    assert follow(build_average(model(), 0.0), values) == 5.0


def test_after_many_updates_the_decay_is_the_one_that_was_asked_for():
    average = build_average(model(), 0.99)
    follow(average, [0.0] * 2000)
    assert follow(average, [1.0] * 69) == pytest.approx(1 - 0.99**69, rel=1e-4)


def test_the_average_is_a_float32_copy_without_gradients():
    trained = nn.Linear(2, 2).bfloat16()
    average = build_average(trained, 0.9)
    average.update_parameters(trained)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in average.parameters())
    before = average.module.weight.clone()
    nn.init.zeros_(trained.weight)
    assert average.module.weight.equal(before)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ConfigError, match=r"SOLVER\.EMA\.DECAY is"):
        build_average(model(), decay)


def checkpointer(folder, trained, average=None, **settings):
    states = {} if average is None else {AVERAGE_KEY: average}
    return Checkpointer(trained, str(folder), **settings, **states)


def test_the_average_comes_back_and_evaluations_may_prefer_it(tmp_path):
    trained, average = model(8.0), build_average(model(), 0.5)
    follow(average, [1.0, 2.0, 3.0])
    checkpointer(tmp_path, trained, average).save("model_0000002")
    resumed, again = model(), build_average(model(), 0.5)
    checkpointer(tmp_path, resumed, again).resume_or_load("", resume=True)
    assert resumed.weight.equal(trained.weight)
    assert follow(again, [9.0]) == follow(average, [9.0])
    file = tmp_path / "model_0000002.pth"
    average_then = torch.load(file, weights_only=True)[AVERAGE_KEY]["module.weight"]
    for prefer, expected in ((True, average_then), (False, trained.weight)):
        evaluated = model()
        checkpointer(tmp_path, evaluated, prefer_average=prefer).load(str(file))
        assert evaluated.weight.equal(expected)


def test_a_checkpoint_without_an_average_that_fits_leaves_the_average_as_it_is(tmp_path):
    """The trainer then starts it from the weights."""
    other = nn.Linear(2, 1)
    for average in (build_average(other, 0.5), None):
        checkpointer(tmp_path, model(), average).save("model_0000002")
        resumed, kept = model(3.0), build_average(model(5.0), 0.5)
        checkpointer(tmp_path, resumed, kept).resume_or_load("", resume=True)
        assert resumed.weight == 0 and kept.module.weight == 5 and kept.n_averaged == 0
    evaluated = model(3.0)
    checkpointer(tmp_path, evaluated, prefer_average=True).load(str(tmp_path / "model_0000002.pth"))
    assert evaluated.weight == 0
