import pytest
import torch
from torch import nn

from mask2former.config import ConfigError
from mask2former.engine import Checkpointer
from mask2former.engine.best import BestModel


def keep(folder, metric="panoptic_seg/PQ"):
    return BestModel(Checkpointer(nn.Linear(1, 1), str(folder)), metric)


def model(value):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    return layer


def update(best, values, metric="panoptic_seg/PQ"):
    for iteration, value in enumerate(values):
        best.update({metric: value, "other": 100.0}, model(iteration), iteration)


def kept(folder):
    content = torch.load(folder / "model_best.pth", weights_only=True)
    assert content["model"]["weight"].item() == content["best"]["iteration"]
    return content["best"]["iteration"], content["best"]["value"]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("panoptic_seg/PQ", [3.0, 7.0, 7.0, 5.0], (1, 7.0)),
        ("panoptic_seg/PQ", [float("nan"), 3.0, float("nan"), float("inf")], (1, 3.0)),
        ("validation/total_loss", [9.0, 4.0, 4.0, 6.0], (1, 4.0)),
    ],
)
def test_the_first_of_the_best_is_kept(tmp_path, metric, values, expected):
    update(keep(tmp_path, metric), values, metric)
    assert kept(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()


def test_nothing_that_could_be_measured_keeps_nothing(tmp_path, caplog):
    update(keep(tmp_path), [float("nan")])
    assert not list(tmp_path.iterdir())
    assert "panoptic_seg/PQ is nan at iteration 0" in caplog.text


def test_a_resumed_training_has_to_be_better_than_before(tmp_path):
    update(keep(tmp_path), [5.0])
    resumed = keep(tmp_path)
    resumed.resume()
    update(resumed, [1.0, 4.0])
    assert kept(tmp_path) == (0, 5.0)
    update(resumed, [1.0, 6.0])
    assert kept(tmp_path) == (1, 6.0)


def test_a_new_training_or_another_metric_starts_afresh(tmp_path):
    update(keep(tmp_path), [50.0])
    update(keep(tmp_path), [0.0, 2.0])
    assert kept(tmp_path) == (1, 2.0)
    other = keep(tmp_path, "sem_seg/mIoU")
    other.resume()
    update(other, [1.0], "sem_seg/mIoU")
    assert kept(tmp_path) == (0, 1.0)


def test_an_unknown_metric_is_answered_with_those_there_are(tmp_path):
    results = {"shapes-val/segm/AP": 1.0, "shapes-val/segm/AP-disc": 1.0, "validation/total_loss": 3.0}
    with pytest.raises(
        ConfigError, match=r"BEST_METRIC is 'PQ', expected one of: shapes-val/segm/AP, validation/total_l"
    ):
        keep(tmp_path, "PQ").update(results, model(0), 0)
