"""The web page with a model of every kind."""

import json
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from mask2former import Predictor
from mask2former.tasks import ARCHITECTURES, TASKS
from mask2former.web import Limits, Workbench
from mask2former.web.page import Handlers, build_page, serve
from mask2former.web.workbench import CLASS_HEADERS, SEGMENT_HEADERS, Choice, Upload
from tests.kinds import KINDS

ME = SimpleNamespace(session_hash="me")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def bench(kind, weights_of, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    opts = [*weights_of(kind.name), "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"]
    return Workbench(Predictor.from_config(kind.config, opts=opts), Limits(), tmp_path)


def components(page):
    found = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    return {name: found[f"m2f-{name}"] for name in ("task", "confidence", "overlap", "opacity", "classes", "table")}


def test_controls_without_a_meaning_are_hidden(bench, kind):
    shown = components(build_page(bench, []))
    performed = bench.predictor.tasks
    assert performed == (ARCHITECTURES[kind.architecture].tasks or ("panoptic", "instance", "semantic"))
    assert shown["task"].visible == (len(performed) > 1)
    assert shown["confidence"].visible == any(not TASKS[task].no_threshold for task in performed)
    assert shown["overlap"].visible == ("panoptic" in performed)
    segments = kind.task != "classification"
    assert tuple(shown["table"].headers) == (SEGMENT_HEADERS if segments else CLASS_HEADERS)
    # Opacity is in a group that is hidden as a whole.
    group = shown["opacity"].parent
    while group.get_block_name() != "accordion":
        group = group.parent
    assert group.visible == segments
    assert len(shown["classes"].choices) == len(set(bench.predictor.classes().names))


def test_a_photograph_is_shown_and_downloaded(bench, kind, photo):
    handlers = Handlers(bench, [])
    upload, *_ = handlers.uploaded(str(photo()))
    values = (kind.task, 0, 0, [])
    (_, masks), status, table = handlers.show(ME, upload, 60, *values)
    assert "photo.png" in status and 'role="status"' in status
    rows = table["value"]
    assert rows and table["visible"]
    result = json.loads(handlers.data(ME, upload, *values).read_text())
    (found,) = (value for key, value in result.items() if key in ("segments_info", "classes"))
    assert len(rows) == len([e for e in found if "bbox" not in e or any(e["bbox"][2:])])
    assert len(masks) == (0 if kind.task == "classification" else len(rows))
    assert handlers.picture(ME, upload, *values).name == f"photo_{kind.task}.png"
    # A chosen class is the only one that is left.
    chosen = found[0]["category_name"]
    _, _, table = handlers.show(ME, upload, 60, kind.task, 0, 0, [chosen])
    assert {row[0].split(" #")[0] for row in table["value"]} == {chosen}


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if ARCHITECTURES[kind.architecture].boxes], ids=lambda kind: kind.name
)
def test_boxes_of_a_detector_are_listed_and_drawn(bench, photo):
    upload = Upload(str(photo()), "photo.png")
    shown = bench.show("me", upload, Choice("instance", 0.0, 0.0), 0.5)
    expected = bench.predictor(photo(), confidence_threshold=0.0)
    boxes = [box for box in expected.boxes.round().astype(int).tolist() if any(box[2:])]
    listed = [[int(side) for side in row[3].split(", ")] for row in shown.rows]
    np.testing.assert_allclose(listed, boxes, atol=1)
    assert (shown.photo != bench.preview(upload)).any(), "boxes are drawn"
    nothing = bench.show("me", upload, Choice("instance", 1.0, 0.0), 0.5)
    assert nothing.rows == [] and np.array_equal(nothing.photo, bench.preview(upload))
    assert "lower it to see more" in nothing.caption


@pytest.mark.parametrize("kind", [KINDS["upernet"], KINDS["cascade"]], ids=lambda kind: kind.name)
def test_the_served_page_has_the_controls(bench, monkeypatch, kind):
    page = build_page(bench, [])
    try:
        address = serve(page, bench, "127.0.0.1", None)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=20) as answer:
            assert answer.status == 200 and "Image segmentation" in answer.read().decode()
        with opener.open(f"{address}config", timeout=20) as answer:
            config = json.loads(answer.read())
    finally:
        page.close(verbose=False)
    props = {c["props"].get("elem_id"): c["props"] for c in config["components"]}
    assert props["m2f-confidence"]["visible"] == (kind.task == "instance")
    assert not props["m2f-overlap"]["visible"] and not props["m2f-task"]["visible"]
