import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook
from torch import nn

from mask2former.checkpoint import Checkpointer
from mask2former.config import ConfigError
from mask2former.engine.hooks import BestWeights


class Training(TrainerBase):
    """Iterations that set the weights to their number, each followed by an evaluation with the next result."""

    def __init__(self, folder, results, metric):
        super().__init__()
        self.model = nn.Linear(1, 1)
        remaining = iter(results)
        evaluation = EvalHook(1, lambda: next(remaining))
        self.register_hooks([evaluation, BestWeights(1, Checkpointer(self.model, str(folder)), self.model, metric)])

    def run_step(self):
        nn.init.constant_(self.model.weight, self.iter)


def train(folder, values, metric="panoptic_seg/PQ", start=0):
    task, name = metric.split("/")
    results = [{task: {name: value, "other": 100.0}} for value in values]
    Training(folder, results, metric).train(start, start + len(values))


def kept(folder):
    content = torch.load(folder / "model_best.pth", weights_only=True)
    best = content["best"]
    # The last evaluation is after the training.
    assert content["model"]["weight"].item() in (best["iteration"], best["iteration"] - 1)
    return best["iteration"], best["value"]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("panoptic_seg/PQ", [3.0, 7.0, 7.0, 5.0], (1, 7.0)),
        ("panoptic_seg/PQ", [float("nan"), 3.0, float("nan"), float("inf"), 1.0], (1, 3.0)),
        ("panoptic_seg/PQ", [float("inf"), 3.0, 1.0], (1, 3.0)),
        ("validation/total_loss", [9.0, 4.0, 4.0, 6.0], (1, 4.0)),
    ],
)
def test_the_first_of_the_best_is_kept(tmp_path, metric, values, expected):
    train(tmp_path, values, metric)
    assert kept(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()


def test_nothing_that_could_be_measured_keeps_nothing(tmp_path, caplog):
    train(tmp_path, [float("nan")])
    assert not list(tmp_path.iterdir())
    assert "panoptic_seg/PQ is nan at iteration 1" in caplog.text


def test_a_resumed_training_has_to_be_better_than_before(tmp_path):
    train(tmp_path, [5.0, 4.0])
    train(tmp_path, [1.0, 4.5], start=2)
    assert kept(tmp_path) == (0, 5.0)
    train(tmp_path, [1.0, 6.0, 2.0], start=2)
    assert kept(tmp_path) == (3, 6.0)


def test_a_new_training_or_another_metric_starts_afresh(tmp_path):
    train(tmp_path, [50.0, 1.0])
    train(tmp_path, [0.0, 2.0, 1.0])
    assert kept(tmp_path) == (1, 2.0)
    train(tmp_path, [1.0, 0.5], "sem_seg/mIoU", start=3)
    assert kept(tmp_path) == (3, 1.0)


def test_an_unknown_metric_is_answered_with_those_there_are(tmp_path):
    results = {"shapes-val": {"segm/AP": 1.0, "segm/AP-disc": 1.0}, "validation": {"total_loss": 3.0}}
    message = r"BEST_METRIC is 'PQ', expected one of: shapes-val/segm/AP, validation/total_l"
    with pytest.raises(ConfigError, match=message):
        Training(tmp_path, [results] * 3, "PQ").train(0, 3)
