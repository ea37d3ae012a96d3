"""The Python examples of docs/timm_and_transformers.md about classifiers run as they stand."""

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dinat_backbone import create_classifier
from dinat_backbone.transformers import create_model, image_processor
from dinat_backbone.variants import VARIANTS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "timm_and_transformers.md").read_text(encoding="utf-8")
# Those after the heading of Mask2Former need a model of full size.
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.split("## Mask2Former")[0], re.MULTILINE | re.DOTALL)
SMALL = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "dilations": [[1], [1, 4], [1], [1]]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a published file of a shrunken model, and the folder that it becomes."""
    variant = VARIANTS["dinat_mini"]
    monkeypatch.setitem(VARIANTS, "dinat_mini", replace(variant, settings={**variant.settings, **SMALL}))
    monkeypatch.chdir(tmp_path)
    torch.save(create_classifier("dinat_mini").state_dict(), "dinat_mini_in1k_224.pth")
    create_model("dinat_mini", "dinat_mini_in1k_224.pth").save_pretrained("DINAT")
    image_processor("dinat_mini").save_pretrained("DINAT")


def run(code: str) -> dict:
    names = {"image": Image.new("RGB", (300, 260), (90, 120, 200))}
    exec(code, names)
    return names


def test_the_page_has_these_examples():
    assert [code.split()[1].split(".")[1].rstrip(",") for code in EXAMPLES] == ["timm", "transformers", "transformers"]


def test_the_example_of_timm(folder):
    names = run(EXAMPLES[0])
    assert (names["channels"], names["strides"]) == ([16, 32, 64, 128], [4, 8, 16, 32])
    assert names["classes"].shape == (1, 5)
    assert len(names["optimizer"].param_groups) > 4


def test_the_example_of_transformers(folder):
    names = run(EXAMPLES[1])
    assert names["label"].startswith("LABEL_")
    assert names["stride_8"] == (1, 32, 28, 28)
    assert [tuple(x.shape[2:]) for x in names["maps"]] == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_the_example_of_conversion(folder):
    names = run(EXAMPLES[2])
    published = torch.load("dinat_mini_in1k_224.pth")
    state = names["native"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in published.items())
