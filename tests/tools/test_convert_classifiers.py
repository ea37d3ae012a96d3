"""tools/convert_weights.py: a published classifier becomes a folder of transformers and returns."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import dinat_backbone.transformers  # noqa: F401 - registers NAT and DiNAT
from dinat_backbone import create_classifier
from dinat_backbone.variants import VARIANTS
from tests.conftest import load_script

script = load_script("tools/convert_weights.py")
SMALL = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8]}


def run(*words):
    script.main([str(word) for word in words])


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
    for name, dilations in (("nat_mini", None), ("dinat_mini", [[1], [1, 4], [1], [1]])):
        settings = {**VARIANTS[name].settings, **SMALL} | ({"dilations": dilations} if dilations else {})
        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], settings=settings, num_classes=7))


@pytest.fixture
def published(tmp_path, deterministic):
    """A file as published: the bare state dict."""
    model = deterministic.load_weights(create_classifier("dinat_mini"))
    torch.save(model.state_dict(), tmp_path / "dinat_mini.pth")
    return tmp_path / "dinat_mini.pth"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_there_and_back(published, weights, tmp_path, capsys):
    run(published, tmp_path / "folder", "--to-transformers", "--model", "dinat_mini")
    assert "model.safetensors: " in capsys.readouterr().out
    native = create_classifier("dinat_mini", published).eval()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "folder")
    assert type(model).__name__ == "DinatForImageClassification"
    assert model.config.architectures == ["DinatForImageClassification"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)
    x = torch.randn(1, 3, 112, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, native(x), rtol=0, atol=1e-5)
    if weights == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "folder" / "model.safetensors"), tmp_path / "folder" / weights)
        (tmp_path / "folder" / "model.safetensors").unlink()
    run(tmp_path / "folder", tmp_path / "back.pth")
    returned, original = torch.load(tmp_path / "back.pth")["model"], torch.load(published)
    assert returned.keys() == original.keys()
    assert all(torch.equal(returned[name], value) for name, value in original.items())


def test_a_file_that_remembers_its_model_needs_no_name(published, tmp_path):
    run(published, tmp_path / "folder", "--to-transformers", "--model", "dinat_mini")
    run(tmp_path / "folder", tmp_path / "back.safetensors")
    run(tmp_path / "back.safetensors", tmp_path / "again", "--to-transformers")
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "folder" / file).read_bytes()


def test_dilations_leave_no_trace_in_a_file(published, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(published, tmp_path / "folder", "--to-transformers")
    assert "are those of nat_mini, dinat_mini; --model says which classifier it is" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_other_models_and_other_names_are_refused(published, tmp_path, capsys):
    for model, message in (
        ("dinat_s_tiny", "dinat_s_tiny: transformers has only the classifiers nat_mini, "),
        ("dinat_tiny", "the model of transformers differs: "),
    ):
        with pytest.raises(SystemExit):
            run(published, tmp_path / "folder", "--to-transformers", "--model", model)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(published, tmp_path / "w.pth", "--model", "dinat_mini")
    assert "--model is for --to-transformers" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
