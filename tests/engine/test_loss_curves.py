import json

import numpy as np
import pytest
from PIL import Image

from mask2former.engine.metrics_log import draw_loss_curves, read_metrics

# Colours of the curves, as they are drawn.
TRAINING, VALIDATION, METRIC = (47, 111, 178), (196, 67, 43), (60, 140, 74)


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pixels(picture, color):
    return int((np.asarray(Image.open(picture).convert("RGB")) == color).all(-1).sum())


@pytest.fixture
def lines():
    training = [{"iteration": i, "total_loss": 30 / (1 + i / 20)} for i in range(19, 100, 20)]
    evaluations = [
        {"iteration": i, "validation/total_loss": 20 - i / 10, "segm/AP": i / 3, "sem_seg/mIoU": float("nan")}
        for i in (24, 49, 74, 100)
    ]
    return training + evaluations


def test_the_curves_that_there_are_are_drawn(tmp_path, lines):
    picture = tmp_path / "losses.png"
    draw_loss_curves(write(tmp_path / "m.json", lines), picture)
    assert all(pixels(picture, color) > 20 for color in (TRAINING, VALIDATION, METRIC))
    draw_loss_curves(write(tmp_path / "m.json", lines[:5]), picture)
    assert pixels(picture, TRAINING) > 20 and pixels(picture, VALIDATION) == pixels(picture, METRIC) == 0


def test_without_numbers_there_is_no_picture(tmp_path):
    draw_loss_curves(tmp_path / "absent.json", tmp_path / "losses.png")
    draw_loss_curves(write(tmp_path / "m.json", [{"iteration": 3, "lr": 0.1}]), tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


def test_what_a_resumed_run_did_again_counts_once(tmp_path):
    first = [{"iteration": i, "total_loss": 1.0} for i in (19, 39, 59)]
    again = [
        {"iteration": 30, "total_loss": 2.0},
        {"iteration": 30, "segm/AP": 5.0},
        {"iteration": 50, "total_loss": 3.0},
    ]
    assert read_metrics(write(tmp_path / "m.json", first + again)) == {
        19: {"total_loss": 1.0},
        30: {"total_loss": 2.0, "segm/AP": 5.0},
        50: {"total_loss": 3.0},
    }
