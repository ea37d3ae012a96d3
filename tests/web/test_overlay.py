import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from mask2former.data.classes import ClassTable
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, SemanticPrediction
from mask2former.web.overlay import message_html, outline, photo_html, regions, result_html

IMAGE = np.full((100, 120, 3), 90, np.uint8)
NASTY = "<script>alert('{{x}} ${y}')</script>"


class Tags(HTMLParser):
    """All elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def panoptic(names=("cat", "sky", "grass")):
    ids = np.zeros((100, 120), np.int32)
    ids[:, :60], ids[:50, 60:] = 1, 2
    info = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.912},
        {"id": 2, "category_id": 1, "isthing": False, "score": 0.8},
        {"id": 3, "category_id": 2, "isthing": False, "score": 0.7},  # without a pixel
    ]
    return PanopticPrediction(classes=ClassTable(names), image=IMAGE, ids=ids, segments_info=info)


def fill(path, shape, scale=1):
    """The pixels whose centres an SVG path holds, by the rule of even and odd."""
    counts = np.zeros((shape[0] * scale, shape[1] * scale), np.int32)
    for ring in re.findall(r"M([^Z]*)Z", path):
        points = np.array([[float(v) for v in point.split()] for point in ring.split("L")])
        layer = np.zeros_like(counts, dtype=np.uint8)
        cv2.fillPoly(layer, [np.round((points * scale - 0.5) * 16).astype(np.int32)], 1, shift=4)
        counts += layer
    return counts % 2 == 1


@pytest.mark.parametrize("size", [(90, 120), (900, 1200)])
def test_outlines_hold_their_masks_holes_and_islands_included(size):
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / size[0]
    ring = (np.hypot(y - 0.5, x - 0.5) < 0.4) & (np.hypot(y - 0.5, x - 0.5) > 0.2)
    mask = ring | (np.hypot(y - 0.5, x - 0.5) < 0.1) | ((x > 1.1) & (y > 0.8))
    filled = fill(outline(mask), size)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.95
    assert not fill(outline(np.zeros(size, bool)), size).any()


def test_a_result_names_its_regions_in_picture_and_table():
    page = Tags(result_html(panoptic(), "my photo.jpg", IMAGE.repeat(2, 0).repeat(2, 1), "lower it"))
    paths = page.all("path")
    assert [path["aria-label"] for path in paths] == ["cat 91%", "sky 80%"]
    assert [row["data-region"] for row in page.all("tr")[1:]] == [path["data-region"] for path in paths] == ["0", "1"]
    assert "2 segments in my photo.jpg (240 × 200 pixels)" in page.text
    assert "cat91.2%50.0%0, 0, 120, 200" in page.text and "lower it" not in page.text
    (picture,) = page.all("img")
    assert picture["src"].startswith("data:image/jpeg;base64,") and picture["alt"] == "my photo.jpg"


def test_without_regions_the_page_says_what_to_do():
    page = Tags(result_html(panoptic().filter(classes=[]), "photo.jpg", IMAGE, "lower it"))
    assert "0 segments" in page.text and "lower it" in page.text
    assert not page.all("path") and not page.all("table")


def test_regions_have_the_colours_of_the_picture():
    result = panoptic()
    picture = result.draw(enlarge=False)
    for region, (y, x) in zip(regions(result), [(90, 10), (40, 115)], strict=True):
        np.testing.assert_allclose(picture[y, x], (IMAGE[y, x] + np.array(region.color)) / 2, atol=1)


def test_the_best_instance_lies_on_top_and_is_listed_first():
    masks = np.ones((2, 100, 120), bool)
    result = InstancePrediction(
        classes=ClassTable(["cat", "dog"]),
        image=IMAGE,
        masks=masks,
        category_ids=np.array([1, 0]),
        scores=np.array([0.9, 0.6], np.float32),
    )
    page = Tags(result_html(result, "photo.jpg", IMAGE, ""))
    assert [path["aria-label"] for path in page.all("path")] == ["cat 60%", "dog 90%"]
    assert page.text.index("dog") < page.text.index("cat")


def test_semantic_results_have_no_column_of_scores():
    labels = np.zeros((100, 120), np.int32)
    page = Tags(
        result_html(SemanticPrediction(classes=ClassTable(["sky"]), image=IMAGE, labels=labels), "p", IMAGE, "")
    )
    assert page.all("path")[0]["aria-label"] == "sky" and "Score" not in page.text and "1 segment in p" in page.text


def test_names_are_text_wherever_they_stand():
    for page in (
        result_html(panoptic([NASTY] * 3), NASTY, IMAGE, NASTY),
        result_html(panoptic().filter(classes=[]), NASTY, IMAGE, NASTY),
        photo_html(IMAGE, NASTY),
        message_html(NASTY, error=True),
    ):
        tags = Tags(page)
        assert "script" not in {name for name, _ in tags.elements} and NASTY in tags.text


def test_a_result_that_forgot_its_image_is_an_error():
    result = panoptic()
    with pytest.raises(ValueError, match="does not remember"):
        result_html(PanopticPrediction(classes=result.classes, ids=result.ids, segments_info=[]), "p", IMAGE, "")
