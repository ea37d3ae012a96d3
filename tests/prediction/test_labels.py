import numpy as np
import pytest
from PIL import ImageFont

from mask2former.prediction.drawing import Label, draw_labels
from mask2former.prediction.text import font, font_size


def painted(picture):
    return (picture != 0).any(axis=2)


def test_text_grows_with_the_picture_and_stays_readable():
    assert font_size(64, 64) == 12
    assert font_size(3000, 4000) > 4 * font_size(480, 640)
    assert isinstance(font(12), ImageFont.FreeTypeFont), "Pillow was built without FreeType: text has one tiny size"


@pytest.mark.parametrize("anchor", [(0, 0), (399, 299), (200, 0), (0, 299)])
def test_labels_stay_inside_the_picture(anchor):
    empty = np.zeros((300, 400, 3), dtype=np.uint8)
    centre = painted(draw_labels(empty, [Label("a label", (255, 255, 255), (200, 150), 1)])).sum()
    corner = painted(draw_labels(empty, [Label("a label", (255, 255, 255), anchor, 1)])).sum()
    assert corner == pytest.approx(centre, rel=0.05)


def test_labels_at_one_place_do_not_cover_each_other():
    empty = np.zeros((300, 400, 3), dtype=np.uint8)
    one = painted(draw_labels(empty, [Label("label", (200, 0, 0), (200, 150), 1)])).sum()
    three = draw_labels(empty, [Label("label", (200, 0, 0), (200, 150), 1)] * 3)
    assert painted(three).sum() == pytest.approx(3 * one, rel=0.05)


def test_a_label_without_a_free_place_is_left_out():
    empty = np.zeros((20, 60, 3), dtype=np.uint8)
    label = Label("label", (200, 0, 0), (30, 10), 1)
    assert np.array_equal(draw_labels(empty, [label] * 20), draw_labels(empty, [label]))
