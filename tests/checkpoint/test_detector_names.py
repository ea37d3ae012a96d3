"""Published detectors: their names and shapes in both directions, and the backbone under their feature pyramid."""

import gzip
import json

import pytest
import torch

from mask2former.checkpoint import compare, compare_backbone, from_openmmlab, holds_backbone_only, to_openmmlab
from tests.conftest import ROOT

FILES = sorted((ROOT / "tests/published/state_dicts").glob("*maskrcnn*.json.gz"))


def read(path):
    """Names of a checkpoint with weights that only have a shape."""
    shapes = json.loads(gzip.decompress(path.read_bytes()))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_all_twenty_one_are_there():
    assert len(FILES) == 21


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_name_has_a_counterpart(path):
    state = read(path)
    own = from_openmmlab(state)
    assert len(own) == len(state)
    assert {name.split(".")[0] for name in own} == {"backbone", "proposal_generator", "roi_heads"}
    assert {name for name in own if name.startswith("backbone.") and "bottom_up" not in name} == {
        f"backbone.fpn_{kind}{level}.{leaf}"
        for kind in ("lateral", "output")
        for level in range(2, 6)
        for leaf in ("weight", "bias")
    }
    assert list(to_openmmlab(own)) == list(state)
    assert from_openmmlab(own).keys() == own.keys()
    assert compare(own, own)[1].exact


def test_a_classifier_is_the_backbone_of_a_detector():
    detector = from_openmmlab(read(FILES[0].with_name("state_dict_nat_mini_maskrcnn.json.gz")))
    classifier = read(FILES[0].with_name("state_dict_nat_mini.json.gz"))
    assert holds_backbone_only(classifier, detector)
    taken, report = compare_backbone(classifier, detector)
    assert report.exact
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    bottom_up = {name for name in detector if name.startswith("backbone.bottom_up.")}
    norms = {name for name in bottom_up if name.split(".")[2].startswith("norm")}
    assert set(taken) == bottom_up - norms and len(norms) == 8
    assert not holds_backbone_only(detector, detector)


def test_a_backbone_of_a_segmentation_model_is_that_of_a_detector():
    detector = from_openmmlab(read(FILES[0].with_name("state_dict_nat_mini_maskrcnn.json.gz")))
    upernet = read(FILES[0].with_name("state_dict_nat_mini_upernet.json.gz"))
    backbone = {name: value for name, value in upernet.items() if name.startswith("backbone.")}
    assert holds_backbone_only(backbone, detector)
    assert compare_backbone(backbone, detector)[1].exact
