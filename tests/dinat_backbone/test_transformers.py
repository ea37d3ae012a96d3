"""NAT and DiNAT in the transformers library: numbers and names of its own DiNAT, documented outputs, folders."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

from dinat_backbone import BackboneConfigError
from dinat_backbone.transformers import (
    DinatBackbone,
    DinatConfig,
    DinatForImageClassification,
    DinatModel,
    NatBackbone,
    NatConfig,
    NatForImageClassification,
    NatModel,
)
from dinat_common.errors import MissingPackageError

from ..conftest import ROOT

PARITY = ROOT / "tests" / "parity"
FIXTURE = json.loads((PARITY / "transformers.json").read_text())
NUMBERS = np.load(PARITY / "transformers.npz")
PUBLISHED = [name for name in FIXTURE["published_names"] if not name.endswith(" config")]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "kernel_size": 3, "num_labels": 5}
SMALL |= {"id2label": {index: f"class {index}" for index in range(5)}, "layer_scale_init_value": 0.1}
KINDS = {
    "dinat": (DinatConfig, DinatModel, DinatForImageClassification, DinatBackbone),
    "nat": (NatConfig, NatModel, NatForImageClassification, NatBackbone),
}


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def filled(model: torch.nn.Module, deterministic) -> torch.nn.Module:
    """The model with the weights of the recipe. No name has the lambda_parameters that it mentions."""
    for name, value in model.state_dict().items():
        value.copy_(torch.from_numpy(deterministic.weight(name, value.shape)))
    return model.eval()


def fixture_image(name: str, deterministic) -> torch.Tensor:
    image = torch.from_numpy(deterministic.image(*FIXTURE["models"][name]["image"])).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return ((image - mean[:, None, None]) / std[:, None, None])[None]


def small_classifier(kind: str = "dinat", **settings):
    torch.manual_seed(0)
    return KINDS[kind][2](KINDS[kind][0](**SMALL | settings)).eval()


def assert_close(actual: torch.Tensor, key: str) -> None:
    np.testing.assert_allclose(actual.numpy(), NUMBERS[key], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", FIXTURE["models"])
def test_a_classifier_gives_the_numbers_of_transformers(name, deterministic):
    entry = FIXTURE["models"][name]
    model = filled(AutoModelForImageClassification.from_config(DinatConfig(**entry["config"])), deterministic)
    assert shapes(model) == entry["state"]
    with torch.no_grad():
        output = model(fixture_image(name, deterministic), output_hidden_states=True)
    assert_close(output.logits[0], f"{name}.logits")
    both = zip(output.hidden_states, output.reshaped_hidden_states, strict=True)
    assert [[list(x.shape), list(y.shape)] for x, y in both] == entry["hidden_state_shapes"]
    for index, state in enumerate(output.hidden_states):
        assert_close(state[0, ::2, ::2, ::4], f"{name}.hidden_states.{index}")
        assert torch.equal(state.permute(0, 3, 1, 2), output.reshaped_hidden_states[index])


@pytest.mark.parametrize("name", FIXTURE["models"])
def test_a_backbone_gives_the_numbers_of_transformers(name, deterministic):
    entry = FIXTURE["models"][name]
    config = DinatConfig(**entry["config"], out_features=STAGES)
    model = filled(AutoBackbone.from_config(config), deterministic)
    assert shapes(model) == entry["backbone_state"]
    with torch.no_grad():
        output = model(fixture_image(name, deterministic))
    assert [list(x.shape) for x in output.feature_maps] == entry["feature_map_shapes"]
    assert output.hidden_states is None
    for index, x in enumerate(output.feature_maps):
        assert_close(x[0, ::4, ::2, ::2], f"{name}.feature_maps.{index}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_these_names_and_this_config(name, tmp_path):
    published = FIXTURE["published_names"][f"{name} config"]
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is DinatConfig
    written = config.to_dict()
    del published["transformers_version"]
    assert {key: written[key] for key in published} == published
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    assert shapes(model) == FIXTURE["published_names"][name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_folders_load_by_their_model_type(kind, extension, tmp_path):
    config_class, model_class, classifier_class, _ = KINDS[kind]
    model = small_classifier(kind)
    model.save_pretrained(tmp_path)
    if extension == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert type(AutoConfig.from_pretrained(tmp_path)) is config_class
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is classifier_class
    assert loaded.config.id2label == SMALL["id2label"]
    x = torch.randn(2, 3, 64, 50)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
        without_head = AutoModel.from_pretrained(tmp_path)
        assert type(without_head) is model_class
        output = without_head(x)
        assert torch.equal(model.classifier(output.pooler_output), model(x).logits)
    assert torch.equal(output.last_hidden_state.mean(dim=(1, 2)), output.pooler_output)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_survives_saving_and_takes_stages_by_name_and_number(kind, tmp_path):
    small_classifier(kind).save_pretrained(tmp_path / "classifier")
    backbone = AutoBackbone.from_pretrained(tmp_path / "classifier", out_indices=[0, 2, 4])
    assert type(backbone) is KINDS[kind][3]
    assert (backbone.out_features, backbone.channels) == (["stem", "stage2", "stage4"], [16, 32, 128])
    with torch.no_grad():
        for parameter in backbone.hidden_states_norms.parameters():
            parameter.normal_()
    backbone.save_pretrained(tmp_path / "backbone")
    again = AutoBackbone.from_pretrained(str(tmp_path / "backbone"))
    x = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        maps, same = backbone(x).feature_maps, again(x).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 18, 16), (1, 32, 9, 8), (1, 128, 3, 2)]
    assert all(torch.equal(a, b) for a, b in zip(maps, same, strict=True))
    one = AutoBackbone.from_pretrained(tmp_path / "backbone", out_features=["stage2"])
    with torch.no_grad():
        assert torch.equal(one(x).feature_maps[0], maps[1])


def test_hidden_states_of_a_backbone_are_not_downsampled():
    backbone = DinatBackbone(DinatConfig(**SMALL, out_features=["stage1", "stage4"])).eval()
    with torch.no_grad():
        output = backbone(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    sizes = [tuple(state.shape[1:]) for state in output.hidden_states]
    assert sizes == [(16, 16, 16), (16, 16, 16), (8, 8, 32), (4, 4, 64), (2, 2, 128)]
    expected = backbone.hidden_states_norms["stage4"](output.hidden_states[4]).permute(0, 3, 1, 2)
    assert torch.equal(output.feature_maps[1], expected)


def test_outputs_as_tuples_leave_out_what_was_not_computed():
    model, x = small_classifier(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = model(x).logits
        assert len(model(x, return_dict=False)) == 1
        loss, same, states, reshaped = model(x, labels=torch.tensor([3]), output_hidden_states=True, return_dict=False)
        assert len(DinatModel(DinatConfig(**SMALL), add_pooling_layer=False)(x, return_dict=False)) == 1
    assert torch.equal(same, logits)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([3])))
    assert len(states) == len(reshaped) == 5


def test_the_config_can_ask_for_hidden_states_and_the_problem_chooses_the_loss():
    model = small_classifier(output_hidden_states=True, problem_type="multi_label_classification")
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]])
    output = model(torch.randn(1, 3, 64, 64), labels=labels)
    assert len(output.hidden_states) == 5
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    assert torch.allclose(output.loss, expected)


@pytest.mark.parametrize("model_class", [DinatModel, DinatForImageClassification, DinatBackbone])
def test_attention_maps_are_refused(model_class):
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(BackboneConfigError, match="output_attentions=True: neighborhood attention never"):
        model_class(DinatConfig(**SMALL))(x, output_attentions=True)
    with pytest.raises(BackboneConfigError, match="output_attentions=True"):
        model_class(DinatConfig(**SMALL, output_attentions=True))(x)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"dilations": [[1], [1], [1], [1]]}, "dilations must have one entry per block: lengths"),
        ({"num_heads": [1, 2, 4]}, r"num_heads must have one entry per level \(4\)"),
        ({"num_heads": [3, 2, 4, 8]}, "dim 16 is not a multiple of num_heads 3"),
        ({"patch_size": 8}, "patch_size 8: the tokenizer"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(BackboneConfigError, match=message):
        DinatModel(DinatConfig(**SMALL | settings))


def test_default_dilations_are_the_published_ones_for_any_depth():
    mini = FIXTURE["published_names"]["dinat-mini-in1k-224 config"]
    assert DinatConfig().to_dict()["dilations"] == mini["dilations"]
    assert DinatConfig(depths=[2, 2, 3, 1]).dilations == [[1, 8], [1, 4], [1, 2, 1], [1]]
    assert not hasattr(NatConfig(), "dilations")


def test_checkpointing_gives_the_same_gradients():
    model = small_classifier(drop_path_rate=0.5, hidden_dropout_prob=0.1).train()
    x, labels, gradients = torch.randn(2, 3, 64, 64), torch.tensor([3, 1]), []
    for enable in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(x, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert model.is_activation_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_new_weights_are_initialised_by_the_config(tmp_path):
    model = small_classifier(initializer_range=0.5)
    assert 0.4 < model.dinat.encoder.levels[3].layers[0].intermediate.dense.weight.std() < 0.6
    layer = model.dinat.encoder.levels[0].layers[0]
    assert torch.equal(layer.layer_scale_parameters, torch.full((2, 16), 0.1))
    assert 0.01 < layer.attention.self.rpb.std() < 0.03
    model.save_pretrained(tmp_path)
    other = DinatForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.out_features == 7
    assert torch.equal(other.dinat.layernorm.weight, model.dinat.layernorm.weight)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_the_image_processor_of_a_published_folder(backend, tmp_path, deterministic):
    """The published models resize to a square without a crop; files of 2022 name a ViTFeatureExtractor."""
    small_classifier().save_pretrained(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    settings = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor"}
    settings |= {"image_mean": mean, "image_std": std, "resample": 3, "size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(processor).__name__.startswith("ViTImageProcessor")
    image = Image.fromarray(deterministic.image("processor", 90, 130).transpose(1, 2, 0))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    resized = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = ((resized - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    # torchvision rounds some values to the neighboring level, 1/255 before the division by the deviation.
    np.testing.assert_allclose(pixels[0], expected, rtol=0, atol=1e-5 if backend == "pil" else 1.01 / 255 / 0.224)
    with torch.no_grad():
        assert AutoModelForImageClassification.from_pretrained(tmp_path)(pixels).logits.shape == (1, 5)


def test_transformers_own_names_are_these_classes_too():
    """Its module of DiNAT fails with a current NATTEN."""
    assert transformers.DinatForImageClassification is DinatForImageClassification
    assert AutoModel.from_config(transformers.DinatConfig(embed_dim=16)).config.embed_dim == 16


def test_the_pipeline_of_transformers(tmp_path, deterministic):
    """A pipeline imports all image classifiers of the library, its own DiNAT among them."""
    model = small_classifier()
    model.save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = Image.fromarray(deterministic.image("processor", 90, 130).transpose(1, 2, 0))
    results = pipeline("image-classification", model=str(tmp_path))(image, top_k=5)
    assert {result["label"] for result in results} == set(SMALL["id2label"].values())


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_missing_library_is_named(library, monkeypatch):
    for loaded in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    name = f"dinat_backbone.{library}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingPackageError, match=rf"{name} needs another package: pip install -e '\.\[{library}\]'"):
        importlib.import_module(name)
