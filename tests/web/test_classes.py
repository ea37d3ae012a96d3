"""The page of an image classifier."""

import json
from types import SimpleNamespace

import pytest
import torch

from mask2former.prediction.predictor import Predictor
from mask2former.web import Limits, Workbench
from mask2former.web.page import Handlers, build_page
from tests.conftest import ROOT

ME = SimpleNamespace(session_hash="me")
OPTS = (
    "MODEL.WEIGHTS '' MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 8 MODEL.DINAT.DEPTHS [1,1,1,1] "
    "MODEL.DINAT.NUM_HEADS [1,1,2,2] MODEL.DINAT.DILATIONS [[1],[1],[1],[1]] INPUT.CLASSIFICATION.SIZE 32"
).split()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Predictor.from_config(ROOT / "configs" / "shapes" / "classification" / "dinat_pico.yaml", opts=OPTS)


@pytest.fixture
def handlers(classifier, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return Handlers(Workbench(classifier, Limits(), tmp_path), [photo("sample.png")])


def test_a_photograph_is_shown_with_its_most_probable_classes(handlers, classifier, photo):
    file = photo("my photo.png")
    upload = handlers.uploaded(str(file))[0]
    (picture, masks), status, table = handlers.show(ME, upload, 60, "classification", 0, 80, [])
    best = classifier(file).top()
    assert table["value"] == [[row.name, f"{100 * row.probability:.1f}"] for row in best] and len(best) == 5
    assert masks == [] and picture.shape == (384, 640, 3) and "my photo.png (80 × 48 pixels)" in status
    name = best[3].name
    assert handlers.show(ME, upload, 60, "classification", 0, 80, [name])[2]["value"][0][0] == name
    data = handlers.data(ME, upload, "classification", 0, 80, [])
    assert data.name == "my photo_classification.json" and json.loads(data.read_text())["classes"][0][
        "category_id"
    ] == (best[0].category_id)
    assert handlers.picture(ME, upload, "classification", 0, 80, []).name == "my photo_classification.png"


def test_controls_of_segments_are_hidden(classifier, tmp_path):
    page = build_page(Workbench(classifier, Limits(), tmp_path), [])
    hidden = {block.elem_id for block in page.blocks.values() if getattr(block, "visible", True) is False}
    assert {"m2f-task", "m2f-confidence"} <= hidden
    assert page.title == "Image classification"
    headers = [block.headers for block in page.blocks.values() if block.get_block_name() == "dataframe"]
    assert headers == [["Class", "Probability, %"]]
