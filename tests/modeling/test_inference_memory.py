"""Prediction keeps nothing that only losses want, and the benchmark that counts live tensors."""

import pytest
import torch

from ..conftest import ROOT, load_script
from .conftest import example


@pytest.fixture(scope="module")
def script():
    patch = pytest.MonkeyPatch()
    # As Python does it for a script that is run.
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    yield load_script("benchmarks/model_memory.py")
    patch.undo()


class Chain(torch.nn.Module):
    """Two products; the result of the first is not kept."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 1000, bias=False), torch.nn.Linear(1000, 4, bias=False)

    def forward(self, inputs):
        x = self.first(inputs[0]["x"])
        x = self.second(x)
        return x + x.new_zeros(10, 4)


def test_live_tensors_are_those_not_yet_freed(script):
    live = script.follow(Chain(), {"x": torch.ones(10, 8)})
    assert live.peak == 4 * 10 * (1000 + 4)
    assert live.at_peak == {"linear in first": 4 * 10 * 1000, "linear in second": 4 * 10 * 4}
    # What was there before, weights and inputs, does not count.
    assert live.largest_operator == (4 * 10 * (1000 + 4), "linear in second")


def test_prediction_keeps_the_masks_of_the_last_layer_alone(make_model):
    model = make_model()
    asked = []
    model.sem_seg_head.predictor.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[2]))
    inputs = [example([0, 1])]
    with torch.no_grad():
        (prediction,) = model.predict(inputs)
        model(inputs)
        everything = model.sem_seg_head(model.backbone(model.preprocess(inputs).tensor))
        model.train()(inputs)
    assert asked == [False, False, True, True]
    assert len(everything["aux_outputs"]) > 1
    assert torch.equal(prediction.masks, everything["pred_masks"][0])
    assert torch.equal(prediction.logits, everything["pred_logits"][0])
