import numpy as np
import pytest

from mask2former.data.classes import ClassTable
from mask2former.prediction.drawing import (
    MIN_LONGER_SIDE,
    draw_boxes,
    draw_instances,
    draw_panoptic,
    draw_semantic,
    enlargement,
)

CLASSES = ClassTable(names=("cat", "dog", "grass"), colors=((250, 20, 20), (20, 20, 250), (20, 200, 20)))
LARGE = (700, 900)


def grey(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def rectangle(size, rows, columns):
    mask = np.zeros(size, dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


@pytest.mark.parametrize(("size", "factor"), [((64, 64), 10), ((1, 1), 640), ((480, 640), 1), ((375, 500), 2)])
def test_small_images_are_enlarged_by_whole_factors(size, factor):
    picture = draw_semantic(grey(*size), np.zeros(size, dtype=np.int64), CLASSES)
    assert enlargement(*size) == factor
    assert picture.shape == (size[0] * factor, size[1] * factor, 3)
    assert max(picture.shape) >= MIN_LONGER_SIDE


def test_large_images_keep_their_size():
    assert enlargement(3000, 4000) == 1


def test_only_the_segment_is_painted_and_keeps_the_colour_of_its_class():
    image = grey(*LARGE)
    mask = rectangle(LARGE, (100, 500), (200, 600))
    nameless = ClassTable(names=("",), colors=CLASSES.colors)
    picture = draw_instances(image, mask[None], [0], None, nameless)
    assert np.array_equal(picture[~mask], image[~mask])
    assert (picture[110:490, 210:590] == (189, 74, 74)).all()
    assert tuple(picture[100, 300]) == (150, 12, 12), "the outline lies inside the segment"


def test_class_names_and_scores_are_written():
    image = grey(*LARGE)
    masks = rectangle(LARGE, (100, 500), (200, 600))[None]
    plain = draw_instances(image, masks, [0], None, CLASSES)
    scored = draw_instances(image, masks, [0], [0.5], CLASSES)
    other = draw_instances(image, masks, [0], [0.97], CLASSES)
    rows, columns = np.nonzero((plain != scored).any(axis=2))
    assert len(rows) > 50 and abs(rows.mean() - 300) < 10 and abs(columns.mean() - 400) < 20, (
        "the label is in the middle"
    )
    assert (scored != other).any()


def test_instances_of_one_class_differ_and_pictures_repeat():
    image = grey(*LARGE)
    masks = np.stack([rectangle(LARGE, (100, 500), (50, 250)), rectangle(LARGE, (100, 500), (250, 450))])
    picture = draw_instances(image, masks, [1, 1], None, CLASSES)
    first, second = picture[120, 100].astype(int), picture[120, 300].astype(int)
    assert np.abs(first - second).sum() > 40
    assert np.array_equal(picture, draw_instances(image, masks, [1, 1], None, CLASSES))


def test_the_instance_with_the_best_score_is_on_top():
    masks = np.stack([rectangle(LARGE, (100, 500), (100, 500)), rectangle(LARGE, (100, 500), (300, 700))])
    picture = draw_instances(grey(*LARGE), masks, [0, 1], [0.9, 0.6], CLASSES)
    red, _, blue = (int(channel) for channel in picture[120, 400])
    assert red > blue


def test_panoptic_paints_listed_segments_and_counts_instances():
    ids = np.zeros(LARGE, dtype=np.int32)
    ids[:, :300], ids[:, 300:600], ids[:, 600:800] = 1, 2, 3
    info = [
        {"id": 1, "category_id": 2, "isthing": False},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 3, "category_id": 0, "isthing": True, "score": 0.8},
    ]
    picture = draw_panoptic(grey(*LARGE), ids, info, CLASSES)
    assert tuple(picture[20, 20]) == (74, 164, 74)
    assert tuple(picture[20, 450]) != tuple(picture[20, 700])
    assert (picture[:, 810:] == 128).all(), "void stays as it is"


def test_semantic_leaves_the_ignored_label_out():
    labels = np.full(LARGE, 255)
    labels[:, :200] = 1
    picture = draw_semantic(grey(*LARGE), labels, CLASSES)
    assert (picture[:, 400:] == 128).all() and tuple(picture[20, 20]) == (74, 74, 189)


def test_empty_results_leave_the_image():
    image = grey(*LARGE)
    assert np.array_equal(draw_panoptic(image, np.zeros(LARGE, np.int32), [], CLASSES), image)
    assert np.array_equal(draw_instances(image, np.zeros((0, *LARGE), bool), [], [], CLASSES), image)
    assert np.array_equal(draw_instances(image, np.zeros((1, *LARGE), bool), [0], [0.3], CLASSES), image)


def test_predicted_boxes_are_drawn_over_all_areas():
    """Where they were predicted, also beyond the mask, and with a name if there is no mask."""
    masks = np.zeros((3, *LARGE), bool)
    masks[0, 100:200, 100:200] = True
    masks[1, 50:400, 50:400] = True
    boxes = np.array([[80.4, 90.6, 150, 120], [50, 50, 350, 350], [500, 500, 200, 100]], np.float32)
    picture = draw_instances(grey(*LARGE), masks, [0, 1, 1], [0.5, 0.9, 0.8], CLASSES, boxes=boxes)
    colors = CLASSES.segment_colors([{"category_id": 0}, {"category_id": 1}, {"category_id": 1}])
    # The larger instance is better and on top, but not of the box.
    assert tuple(picture[91, 300 - 170]) == colors[0] and tuple(picture[150, 80]) == colors[0]
    assert tuple(picture[50, 60]) == colors[1]
    assert tuple(picture[500, 510]) == tuple(picture[599, 510]) == colors[2] and (picture[510, 510] == 128).all()
    assert (picture[545:555, 560:640] != 128).any(), "its name"
    assert np.array_equal(draw_boxes(grey(*LARGE), boxes[:0], []), grey(*LARGE))


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(700, 900, 3\)"):
        draw_semantic(grey(*LARGE), np.zeros((3, 4), np.int64), CLASSES)
    with pytest.raises(ValueError, match="1 masks, 2 classes"):
        draw_instances(grey(*LARGE), np.zeros((1, *LARGE), bool), [0, 1], None, CLASSES)


def test_classes_without_name_or_colour_get_one():
    table = ClassTable()
    assert table.name(7) == "class 7"
    colors = {table.color(index) for index in range(60)}
    assert len(colors) == 60


def test_class_table_takes_the_list_that_numbers_the_task():
    from detectron2.data.catalog import Metadata

    metadata = Metadata(thing_classes=["cat"], stuff_classes=["sky", "cat"], stuff_colors=[(1, 2, 3), (4, 5, 6)])
    assert ClassTable.from_metadata(metadata, "instance").name(0) == "cat"
    assert ClassTable.from_metadata(metadata, "panoptic").name(1) == "cat"
    assert ClassTable.from_metadata(metadata, "semantic").color(0) == (1, 2, 3)
