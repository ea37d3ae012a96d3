"""The table of published models equals the facts about the family, row by row."""

import json

import pytest

from mask2former.model_zoo import MODELS, SETTINGS

from .conftest import ROOT

FAMILY = json.loads((ROOT / "tests" / "published" / "family.json").read_text())
# The groups of the facts, and ours.
GROUPS = {"classification": "classification", "detection": "detection", "segmentation": "upernet"}
ROWS = [(group, name) for group in GROUPS for name in FAMILY[group]]
METRICS = {"top1": "top1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}


def test_there_are_67_models():
    counts = {
        group: sum(model.group == group for model in MODELS.values()) for group in (*GROUPS.values(), "mask2former")
    }
    assert counts == {"classification": 25, "detection": 21, "upernet": 13, "mask2former": 8}
    assert [name for name, model in MODELS.items() if model.group != "mask2former"] == [name for _, name in ROWS]
    assert {name: MODELS[name] for name in SETTINGS} == SETTINGS
    assert len({model.config_file for model in MODELS.values()}) == len(MODELS)
    assert len({model.checkpoint for model in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize("group,name", ROWS, ids=lambda value: value)
def test_row_equals_the_facts(group, name):
    model, facts = MODELS[name], FAMILY[group][name]
    checkpoint, published = facts["checkpoint"], facts["published"] or {}
    assert model.group == GROUPS[group]
    assert model.checkpoint == checkpoint["file"]
    assert model.checkpoint_url == checkpoint.get("url_in_code", checkpoint.get("url"))
    assert model.published == {METRICS[key]: value for key, value in published.items() if key in METRICS}
    assert model.published_multi_scale == ({"mIoU": published["miou_ms"]} if "miou_ms" in published else {})
    assert (model.parameters, model.flops) == (published.get("params", ""), published.get("flops", ""))
    height, width = model.flops_size
    if group == "classification":
        assert height == width == facts["input_size"]
    else:
        assert f"{width}x{height}" == published["flops_at"]
    # A row says what is doubtful.
    assert bool(model.doubt) == bool(facts.get("doubt") or checkpoint.get("url_in_table"))
    if link := checkpoint.get("url_in_table"):
        assert link.rpartition("/")[2] in model.doubt


@pytest.mark.parametrize("group,name", ROWS, ids=lambda value: value)
def test_config_file_is_in_the_folder_of_its_family(group, name):
    facts = FAMILY[group][name]
    family = facts.get("architecture", facts.get("backbone"))["family"]
    folder = MODELS[name].config_file.parent.name
    expected = {"NAT": "nat", "DiNAT": "dinat", "DiNATs": "dinat_s"}.get(family, "isotropic")
    assert folder == ("isotropic" if "isotropic" in name else expected)
    assert MODELS[name].config_file.stem == name


@pytest.mark.parametrize("name", MODELS)
def test_config_file_exists(name):
    assert (ROOT / MODELS[name].config_file).is_file()
