"""Published NAT and DiNAT classifiers as models of transformers and back: names, configurations, logits, pixels."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from dinat_backbone import create_classifier
from dinat_backbone.transformers import (
    DinatConfig,
    DinatForImageClassification,
    create_model,
    image_processor,
    to_native,
)
from dinat_backbone.transformers.conversion import NotInTransformersError, classifier_config, names, to_transformers
from dinat_backbone.variants import VARIANTS
from dinat_common.transformers_names import dinat_from_transformers

from ..conftest import ROOT

PARITY = ROOT / "tests" / "parity"
PUBLISHED = json.loads((PARITY / "transformers.json").read_text())["published_names"]
FAMILY = json.loads((ROOT / "tests" / "published" / "family.json").read_text())["classification"]
PREPROCESSING = json.loads((PARITY / "classification.json").read_text())["preprocess"]
SMALL = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("name", names())
def test_published_names_become_those_of_transformers_and_return(name):
    file = ROOT / "tests" / "published" / "state_dicts" / FAMILY[name]["checkpoint"]["state_dict"]
    published = json.loads(gzip.decompress(file.read_bytes()))
    state = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    config = classifier_config(name)
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    renamed = to_transformers(state, config.model_type)
    assert shapes(renamed) == shapes(model.state_dict())
    assert shapes(dinat_from_transformers(renamed)) == shapes(state)


@pytest.mark.parametrize(
    "name,published", [("dinat_mini", "dinat-mini-in1k-224"), ("dinat_base", "dinat-base-in1k-224")]
)
def test_configurations_are_those_of_the_published_models(name, published):
    written, expected = classifier_config(name).to_dict(), PUBLISHED[f"{published} config"]
    # The published models record the library's default instead of the rate of their training.
    differing = {key for key in expected if written.get(key) != expected[key]}
    assert differing <= {"transformers_version", "drop_path_rate"}


@pytest.mark.parametrize("name", ["nat_mini", "nat_base", "dinat_mini", "dinat_large_384_11x11"])
def test_logits_are_equal_in_both_directions(name, tmp_path, monkeypatch, deterministic):
    variant = VARIANTS[name]
    settings = {**variant.settings, **SMALL}
    if "dilations" in settings:
        settings["dilations"] = [list(level[:2]) for level in settings["dilations"]]
    monkeypatch.setitem(VARIANTS, name, replace(variant, settings=settings, num_classes=7))
    native = deterministic.load_weights(create_classifier(name)).eval()
    torch.save(native.state_dict(), tmp_path / "published.pth")
    model = create_model(name, tmp_path / "published.pth")
    model.save_pretrained(tmp_path / "folder")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "folder")
    x = torch.randn(2, 3, 100, 130)
    with torch.no_grad():
        expected = native(x)
        torch.testing.assert_close(model(x).logits, expected, rtol=0, atol=1e-5)
        returned = to_native(model)
        assert torch.equal(returned(x), expected)
    assert not returned.training
    state = returned.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in native.state_dict().items())


def test_a_model_with_other_settings_is_refused():
    model = DinatForImageClassification(DinatConfig(**SMALL, hidden_act="relu"))
    with pytest.raises(NotInTransformersError, match="hidden_act 'relu': the authors' network has 'gelu'"):
        to_native(model)


def test_only_nat_and_dinat_are_in_transformers():
    assert len(names()) == 13
    for name in ("dinat_s_tiny", "vitrpb_small", "nothing"):
        with pytest.raises(NotInTransformersError, match=f"{name}: transformers has only the classifiers nat_mini, "):
            create_model(name)


@pytest.mark.parametrize("entry", PREPROCESSING, ids=lambda entry: entry["image"][0])
def test_the_image_processor_is_the_published_evaluation(entry, tmp_path, deterministic):
    name = {224: "dinat_mini", 384: "dinat_large_384"}[entry["size"]]
    image_processor(name).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(classifier_config(name).to_json_string())
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.fromarray(deterministic.image(*entry["image"]).transpose(1, 2, 0))
    pixels = processor(image, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"][0]
    expected = np.load(PARITY / "classification.npz")[f"preprocess.{entry['image'][0]}"]
    assert np.array_equal(pixels[:, 3::8, 3::8], expected)
    normalized = processor(image, return_tensors="pt")["pixel_values"][0]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(
        normalized * std[:, None, None] + mean[:, None, None], torch.tensor(pixels).float(), atol=1e-3
    )
