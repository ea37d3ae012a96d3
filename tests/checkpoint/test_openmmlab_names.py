"""Published UPerNets: their names and shapes, in both directions, and their files."""

import gzip
import json

import pytest
import torch

from mask2former.checkpoint import Checkpointer, CheckpointError, compare, from_openmmlab, to_openmmlab
from tests.conftest import ROOT, load_script
from tests.modeling.upernet import make_model, published_weights, settings

FILES = sorted((ROOT / "tests/published/state_dicts").glob("*upernet*.json.gz"))


def read(path):
    """Names of a checkpoint with weights that only have a shape."""
    shapes = json.loads(gzip.decompress(path.read_bytes()))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_name_has_a_counterpart(path):
    state = read(path)
    own = from_openmmlab(state)
    assert len(own) == len(state)
    assert {name.split(".")[0] for name in own} == {"backbone", "sem_seg_head", "auxiliary_head"}
    assert list(to_openmmlab(own)) == list(state)


def test_all_thirteen_are_there():
    assert len(FILES) == 13


def test_own_names_stay(deterministic):
    own = from_openmmlab(published_weights("dinat", deterministic))
    assert from_openmmlab(own).keys() == own.keys()


def test_weights_of_others_have_no_published_names(deterministic):
    with pytest.raises(CheckpointError, match="exist for UPerNets and detectors only"):
        to_openmmlab({"backbone.norm0.weight": torch.zeros(1)})
    own = from_openmmlab(published_weights("dinat", deterministic))
    with pytest.raises(CheckpointError, match=r"pixel_mean: no weight of a UPerNet in OpenMMLab's libraries"):
        to_openmmlab(own | {"pixel_mean": torch.zeros(1)})
    twice = {"decode_head.bottleneck.bn.weight": torch.zeros(1), "sem_seg_head.bottleneck.norm.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="a second weight that is called sem_seg_head"):
        from_openmmlab(twice)


@pytest.fixture
def file(tmp_path, deterministic):
    """A file as the published code wrote it."""
    weights = published_weights("dinat", deterministic)
    meta = {"CLASSES": ("wall", "sky"), "PALETTE": [[120, 120, 120], [6, 230, 230]], "epoch": 1, "iter": 160000}
    torch.save(
        {"meta": meta, "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "a.pth"
    )
    return tmp_path / "a.pth"


def test_published_files_load_as_they_are(file, deterministic):
    cfg = settings("dinat")
    expected = make_model(cfg, published_weights("dinat", deterministic))
    model = make_model(cfg, {name: torch.zeros_like(value) for name, value in expected.state_dict().items()})
    checkpointer = Checkpointer(model)
    checkpointer.load(str(file), checkpointables=[])
    assert checkpointer.report.exact and not checkpointer.report.initial and not checkpointer.report.dropped
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_training_from_other_classes_has_new_class_heads(file, deterministic):
    cfg = settings("dinat")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    model = make_model(settings("dinat"), published_weights("dinat", deterministic))
    state = from_openmmlab(published_weights("dinat", deterministic))
    other = {name: value[:4] if "conv_seg" in name else value for name, value in model.state_dict().items()}
    _, report = compare(state, other, other_classes=True)
    assert report.exact and report.classes == (11, 4)
    assert set(report.reinitialised) == {
        f"{head}.conv_seg.{leaf}" for head in ("sem_seg_head", "auxiliary_head") for leaf in ("weight", "bias")
    }


def test_conversion_in_both_directions(file, tmp_path, capsys):
    convert = load_script("tools/convert_weights.py")
    convert.main([str(file), str(tmp_path / "b.safetensors"), "--from-openmmlab"])
    convert.main([str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth"), "--to-openmmlab"])
    before, after = torch.load(file)["state_dict"], torch.load(tmp_path / "c.pth")
    after = after.get("state_dict") or after["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
