import numpy as np
import pytest

from mask2former.prediction.drawing import contact_sheet, side_by_side


def plain(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_pictures_stand_side_by_side_at_one_height_under_their_captions():
    sheet = side_by_side(
        {"image": plain(100, 150, 10), "ground truth": plain(200, 300, 90), "prediction": plain(50, 75, 170)}
    )
    columns = [np.nonzero((sheet[-20] == value).all(axis=1))[0] for value in (10, 90, 170)]
    assert [len(column) for column in columns] == [300, 300, 300]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()
    head = sheet[: sheet.shape[0] - 205]
    assert all((head[:, column] < 100).any() for column in columns), "every picture has a caption"


def test_contact_sheet_fills_rows():
    sheet = contact_sheet([plain(50, 100, value) for value in (10, 90, 170)], columns=2, width=400)
    assert sheet.shape == (200, 400, 3)
    assert [sheet[50, 100, 0], sheet[50, 300, 0], sheet[150, 100, 0], sheet[150, 300, 0]] == [10, 90, 170, 255]


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        side_by_side({})
    with pytest.raises(ValueError, match="0 pictures in 2 columns"):
        contact_sheet([], columns=2)
