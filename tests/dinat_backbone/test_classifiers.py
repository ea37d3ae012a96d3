"""The 25 published classifiers: numbers of the published code, names of published files, settings of the papers."""

import gzip
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dinat_backbone import BackboneConfigError, create_classifier
from dinat_backbone.classifier import Classifier
from dinat_backbone.dinat import DiNATClassifier
from dinat_backbone.dinat_s import DiNATsClassifier
from dinat_backbone.isotropic import IsotropicClassifier
from dinat_backbone.variants import VARIANTS, UnknownModelError
from dinat_backbone.vit_rpb import ViTRpbClassifier
from dinat_common.weights import CheckpointError, CheckpointMismatchError

from ..checkpoint.web import Site, serve
from ..conftest import ROOT

TESTS = ROOT / "tests"
FIXTURE = json.loads((TESTS / "parity" / "classification.json").read_text())["models"]
FAMILY = json.loads((TESTS / "published" / "family.json").read_text())["classification"]
KINDS = {
    "hierarchical": DiNATClassifier,
    "dinats": DiNATsClassifier,
    "iso": IsotropicClassifier,
    "vit": ViTRpbClassifier,
}
MODELS = {
    "NAT": DiNATClassifier,
    "DiNAT": DiNATClassifier,
    "DiNATs": DiNATsClassifier,
    "NAT-iso": IsotropicClassifier,
    "DiNAT-iso": IsotropicClassifier,
    "ViT-rpb": ViTRpbClassifier,
}
SMALL = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "kernel_size": 3, "dilations": []}
SMALL_ISOTROPIC = {"embed_dim": 8, "depths": [1], "num_heads": [1]}


def small(name: str, **settings) -> Classifier:
    """A named model, shrunken."""
    size = SMALL_ISOTROPIC if len(VARIANTS[name].settings["depths"]) == 1 else SMALL
    size = size | ({"dilations": []} if "dilations" in VARIANTS[name].settings else {})
    return create_classifier(name, **{**size, **settings}).eval()


def fixture_model(name: str, deterministic) -> Classifier:
    model, settings = FIXTURE[name], dict(FIXTURE[name]["settings"])
    if "depth" in settings:
        depth, dilation = settings.pop("depth"), settings.pop("dilation", 1)
        settings |= {"depths": [depth], "num_heads": [settings["num_heads"]]}
        image_size = settings.pop("img_size")
        if model["kind"] == "vit":
            settings["image_size"] = image_size
        else:
            settings["dilations"] = [[dilation if block % 2 else 1 for block in range(depth)]]
    elif "dilations" in settings:
        # The published code ignores entries beyond the number of blocks.
        settings["dilations"] = [d[:n] for d, n in zip(settings["dilations"], settings["depths"], strict=True)]
    built = KINDS[model["kind"]](**settings).eval()
    assert {key: list(value.shape) for key, value in built.state_dict().items()} == model["state"]
    index = [key for key in built.state_dict() if key.endswith("relative_position_index")]
    deterministic.load_weights(built, skip=index)
    with torch.no_grad():
        for key, value in built.state_dict().items():
            if key.endswith(("gamma1", "gamma2")):
                value.mul_(5)
    return built


@pytest.mark.parametrize("name", FIXTURE)
def test_numbers_of_the_published_code(name, deterministic):
    published = np.load(TESTS / "parity" / "classification.npz")
    model = fixture_model(name, deterministic)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    image = ((torch.from_numpy(deterministic.image(*FIXTURE[name]["image"])).float() - mean) / std)[None]
    got = {}
    if "block0" in FIXTURE[name]["outputs"]:
        for index, block in enumerate(model.layers):
            block.register_forward_hook(lambda _, __, output, index=index: got.update({f"block{index}": output}))
    with torch.no_grad():
        got["patch_embed"] = model.patch_embed(image)
        got |= {f"level{level}": output for level, output in enumerate(model.level_maps(image))}
        got["pooled"] = model.forward_head(model.forward_features(image), pre_logits=True)
        got["logits"] = model(image)
    for output, facts in FIXTURE[name]["outputs"].items():
        expected, value = published[f"{name}.{output}"], got[output].numpy()
        if "stored" in facts:
            value = value[0, ::2, ::2, :: value.shape[-1] // expected.shape[-1]]
        tolerance = 3e-5 if output == "logits" else 1e-4
        np.testing.assert_allclose(value.reshape(expected.shape), expected, rtol=0, atol=tolerance, err_msg=output)


def test_all_published_names():
    assert set(VARIANTS) == set(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_state_dicts_have_published_names_and_shapes(name):
    path = TESTS / "published" / "state_dicts" / FAMILY[name]["checkpoint"]["state_dict"]
    with torch.device("meta"):
        model = create_classifier(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == json.loads(
        gzip.decompress(path.read_bytes())
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == FAMILY[name]["exact_params"]


@pytest.mark.parametrize("name", FAMILY)
def test_settings_are_the_published_ones(name):
    facts, variant = FAMILY[name]["architecture"], VARIANTS[name]
    assert variant.model is MODELS[facts["family"]]
    assert (variant.num_classes, variant.image_size) == (facts["num_classes"], FAMILY[name]["input_size"])
    if evaluation := FAMILY[name]["evaluation"]:
        assert (variant.image_size, variant.crop_pct) == (evaluation["image_size"], evaluation["crop_pct"])
    settings = dict(variant.settings)
    depths = facts.get("depths") or [facts["depth"]]
    heads = facts["num_heads"] if isinstance(facts["num_heads"], list) else [facts["num_heads"]]
    assert (settings["depths"], settings["num_heads"]) == (depths, heads)
    for key in ("embed_dim", "mlp_ratio", "drop_path_rate"):
        assert settings[key] == facts[key]
    assert settings.get("layer_scale") == facts["layer_scale"]
    if facts["kernel_size"]:
        assert settings.get("kernel_size", 7) == facts["kernel_size"]
        levels = facts["dilations"] if isinstance(facts["dilations"][0], list) else [facts["dilations"]]
        assert settings.get("dilations", [[1] * depth for depth in depths]) == levels


@pytest.mark.parametrize("name", FAMILY)
def test_norms_and_activations_of_the_whole_family(name):
    """LayerNorm eps 1e-5 (not 1e-6) and the exact GELU; heads have 32 channels; drop path rises from zero."""
    with torch.device("meta"):
        model = create_classifier(name)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    assert {module.approximate for module in model.modules() if isinstance(module, nn.GELU)} == {"none"}
    attentions = [module.attn for module in model.modules() if hasattr(module, "attn")]
    assert {module.qkv.in_features // module.num_heads for module in attentions} == {32}
    rates = [module.drop_path.p for module in model.modules() if hasattr(module, "drop_path")]
    assert rates == pytest.approx(np.linspace(0, VARIANTS[name].settings["drop_path_rate"], len(rates)))


def test_tokens_of_merged_patches_are_read_down_the_columns():
    merging = DiNATsClassifier(**SMALL, num_classes=2).layers[0].downsample
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    x = torch.arange(4.0).view(1, 2, 2, 1)  # 0 1 / 2 3
    assert merging(x).flatten().tolist() == [0, 2, 1, 3]
    odd = merging(torch.ones(1, 3, 1, 1))
    assert odd.flatten(1, 2).tolist() == [[[1, 1, 0, 0], [1, 0, 0, 0]]], "zeros at the bottom and right"


def test_images_of_other_sizes_are_padded_to_whole_patches():
    model = DiNATsClassifier(**SMALL, num_classes=2).eval()
    image = torch.randn(1, 3, 45, 62)
    padded = torch.zeros(1, 3, 48, 64)
    padded[:, :, :45, :62] = image
    torch.testing.assert_close(model(image), model(padded), rtol=0, atol=0)


def test_vit_rpb_takes_one_size_and_computes_its_index():
    model = small("vitrpb_small")
    with pytest.raises(BackboneConfigError, match="takes images of 224 x 224 pixels, got 224 x 240"):
        model(torch.zeros(1, 3, 224, 240))
    attention = model.layers[0].attn
    bias = attention.rpb.flatten(1)[:, attention.relative_position_index]
    torch.testing.assert_close(attention._bias(), bias, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["pth", "module", "state_dict", "safetensors"])
def test_weights_of_a_file(kind, tmp_path):
    state = small("dinat_mini", num_classes=5).state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        prefix = "module." if kind == "module" else ""
        named = {prefix + key: value for key, value in state.items()}
        torch.save({"meta": {}, "state_dict": named} if kind == "state_dict" else named, path)
    model = small("dinat_mini", weights=path)
    assert model.num_classes == 5, "the classes of the file"
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_weights_of_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("DINAT_CACHE", str(tmp_path / "cache"))
    state = small("dinat_mini").state_dict()
    torch.save(state, tmp_path / "dinat.pth")
    with serve(Site(dinat=(tmp_path / "dinat.pth").read_bytes())) as site:
        model = small("dinat_mini", weights=f"{site.url}/dinat.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["dinat_mini", "dinat_s_tiny", "nat_isotropic_small"])
def test_checkpoints_of_train_net(name, tmp_path):
    state = small(name, num_classes=5).state_dict()
    norm = "norm" if "isotropic" in name else "norm3"
    named = {key if key.startswith("head.") else f"backbone.{key}": value for key, value in state.items()}
    named = {key.replace("backbone.norm.", f"backbone.{norm}."): value for key, value in named.items()}
    torch.save({"model": named | {"pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 1}, tmp_path / "model_final.pth")
    for key, value in small(name, weights=tmp_path / "model_final.pth").state_dict().items():
        assert torch.equal(value, state[key])


def test_another_number_of_classes_keeps_the_rest(tmp_path, caplog):
    state = small("nat_mini", num_classes=5).state_dict()
    torch.save(state, tmp_path / "nat.pth")
    with caplog.at_level(logging.WARNING):
        model = small("nat_mini", weights=tmp_path / "nat.pth", num_classes=3)
    assert "nat.pth has 5 classes, the model has 3: the last layer starts from random weights" in caplog.text
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    for key, value in model.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, state[key])


def test_pooled_features_without_classes():
    model = small("dinat_s_tiny", num_classes=0)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    model.reset_classifier(7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_what_does_not_fit_is_named(tmp_path):
    state = small("dinat_mini").state_dict()
    state["odd"] = state.pop("norm.weight")
    state["levels.0.blocks.0.attn.rpb"] = torch.zeros(1, 13, 13)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError) as error:
        small("dinat_mini", weights=tmp_path / "w.pth")
    for text in (
        "w.pth",
        "dinat_mini",
        "norm.weight is missing",
        "odd is not part",
        "rpb is (1, 13, 13), not (1, 5, 5)",
    ):
        assert text in str(error.value)
    with pytest.raises(UnknownModelError, match="unknown classifier 'dinat_nano', expected one of nat_mini, "):
        create_classifier("dinat_nano")
    with pytest.raises(CheckpointError, match=r"opening a \.pkl can execute"):
        (tmp_path / "w.pkl").touch()
        create_classifier("dinat_mini", tmp_path / "w.pkl")


@pytest.mark.parametrize("name", ["nat_mini", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small"])
def test_activation_checkpointing_changes_nothing(name):
    model = small(name, num_classes=3).train()
    image, gradients = torch.randn(1, 3, 224, 224), []
    for enable in (False, True):
        model.set_checkpointing(enable)
        torch.manual_seed(1)  # drop path
        model.zero_grad()
        model(image).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
