"""The published classifiers in timm: names, configurations, features, weights, and what its tools ask of a model."""

import gzip
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import dinat_backbone.timm
from dinat_backbone import BackboneConfigError, create_classifier
from dinat_backbone.variants import VARIANTS

from ..conftest import ROOT

PARITY = ROOT / "tests" / "parity"
FAMILY = json.loads((ROOT / "tests" / "published" / "family.json").read_text())["classification"]
PREPROCESSING = json.loads((PARITY / "classification.json").read_text())["preprocess"]
LEVELS = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "dilations": [[1], [1, 2], [1], [1]]}
BLOCKS = {"embed_dim": 16, "depths": [3], "num_heads": [2]}
KINDS = ["dinat_mini", "nat_small", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small"]


def settings_of(name: str) -> dict:
    """Settings of a shrunken model."""
    if len(VARIANTS[name].settings["depths"]) == 4:
        return LEVELS
    return BLOCKS | ({} if name.startswith("vitrpb_") else {"dilations": [[1, 2, 1]]})


def small(name: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **settings_of(name) | settings).eval()


def on_meta(name: str, **settings) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **settings)


@pytest.mark.parametrize("name", FAMILY)
def test_every_published_classifier_is_registered_with_its_input_and_features(name):
    facts, variant = FAMILY[name], VARIANTS[name]
    assert timm.is_model(name)
    model = on_meta(name)
    file = ROOT / "tests" / "published" / "state_dicts" / facts["checkpoint"]["state_dict"]
    published = json.loads(gzip.decompress(file.read_bytes()))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published
    # The models of ImageNet-22K were not evaluated.
    evaluation = facts["evaluation"] or FAMILY["dinat_large"]["evaluation"]
    config, size = timm.data.resolve_model_data_config(model), evaluation["image_size"]
    assert config["input_size"] == (3, size, size)
    assert (config["crop_pct"], config["interpolation"]) == (evaluation["crop_pct"], "bicubic")
    assert (list(config["mean"]), list(config["std"])) == (evaluation["mean"], evaluation["std"])
    assert model.num_classes == facts["architecture"]["num_classes"] == model.pretrained_cfg["num_classes"]
    assert {f"{model.pretrained_cfg[key]}.weight" for key in ("first_conv", "classifier")} <= set(published)
    features = on_meta(name, features_only=True)
    channels, strides = features.feature_info.channels(), features.feature_info.reduction()
    dim = variant.settings["embed_dim"]
    if len(variant.settings["depths"]) == 4:
        assert (channels, strides) == ([dim, 2 * dim, 4 * dim, 8 * dim], [4, 8, 16, 32])
    else:
        assert (channels, strides, features.feature_info.out_indices) == ([dim] * 3, [16] * 3, (9, 10, 11))
    for module in features.feature_info.module_name():
        model.get_submodule(module)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("file", ["published.pth", "wrapped.pth", "model.safetensors"])
def test_published_files_load_and_give_the_native_logits(name, file, tmp_path):
    model, path = small(name, num_classes=5), tmp_path / file
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if file == "wrapped.pth" else state, path)
    loaded = small(name, checkpoint_path=path, num_classes=5)
    native = create_classifier(name, path, **settings_of(name)).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        logits = native(x)
        assert torch.equal(loaded(x), logits)
        maps = loaded.forward_features(x)
        assert maps.shape[-1] == loaded.num_features
        assert torch.equal(loaded.forward_head(maps), logits)
        assert torch.equal(loaded.get_classifier()(loaded.forward_head(maps, pre_logits=True)), logits)


@pytest.mark.parametrize("name", KINDS)
def test_features_of_a_published_file(name, tmp_path):
    model, path = small(name, num_classes=5), tmp_path / "published.pth"
    torch.save(model.state_dict(), path)
    x, indices = torch.randn(1, 3, 224, 224), (0, 2)
    wanted = {"features_only": True, "out_indices": indices}
    features = small(name, checkpoint_path=path, **wanted)
    overlay = {"file": str(path), "num_classes": 5}
    same = small(name, pretrained=True, pretrained_cfg_overlay=overlay, **wanted)
    with torch.no_grad():
        maps, again, expected = features(x), same(x), list(model.stage_maps(x))
    for number, index in enumerate(indices):
        assert torch.equal(maps[number], expected[index].permute(0, 3, 1, 2))
        assert torch.equal(again[number], maps[number])
    sizes = zip(features.feature_info.channels(), features.feature_info.reduction(), strict=True)
    assert [tuple(m.shape) for m in maps] == [(1, channels, 224 // stride, 224 // stride) for channels, stride in sizes]
    # Only what leads to the maps is kept.
    left = set(features.model.state_dict())
    assert left < set(model.state_dict())
    assert not any(key.startswith(("norm.", "head.")) for key in left)
    assert features.model.stages()[-1].module.endswith("2" if len(model.stages()) == 3 else "3")
    saved = features.state_dict()
    features.load_state_dict(saved)
    del saved[next(iter(saved))]
    with pytest.raises(RuntimeError, match="Missing key"):
        features.load_state_dict(saved)


def test_a_file_with_other_classes_and_channels_starts_a_fine_tuning(tmp_path):
    model, path = small("dinat_mini", num_classes=1000), tmp_path / "published.pth"
    torch.save(model.state_dict(), path)
    overlay, settings = {"file": str(path)}, {"num_classes": 3, "in_chans": 1, "drop_path_rate": 0.5}
    tuned = small("dinat_mini", pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    assert tuned(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    assert torch.equal(tuned.levels[3].blocks[0].attn.rpb, model.levels[3].blocks[0].attn.rpb)
    expected = model.patch_embed.proj[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(tuned.patch_embed.proj[0].weight, expected)
    assert tuned.levels[3].blocks[0].drop_path.p == 0.5


@pytest.mark.parametrize("name", KINDS)
def test_the_head_can_be_changed_and_removed(name):
    model, x = small(name, num_classes=5), torch.randn(1, 3, 224, 224)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    assert small(name, num_classes=0, global_pool="")(x).ndim == 4
    with pytest.raises(BackboneConfigError, match="global_pool 'max': expected 'avg'"):
        model.reset_classifier(5, "max")


@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_gives_the_same_gradients(name):
    model, x, gradients = small(name, drop_path_rate=0.3).train(), torch.randn(1, 3, 224, 224), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(*gradients, strict=True))


def test_layer_decay_follows_the_depth():
    groups = group_parameters(small("dinat_s_tiny"), small("dinat_s_tiny").group_matcher(), reverse=True)
    assert groups["patch_embed.proj.weight"] == groups["patch_embed.norm.bias"] == 0
    assert groups["layers.0.blocks.0.attn.rpb"] == groups["layers.0.downsample.norm.weight"] == 1
    assert [groups[f"layers.1.blocks.{block}.norm1.weight"] for block in range(2)] == [2, 3]
    assert groups["layers.1.downsample.reduction.weight"] == 3
    assert groups["layers.3.blocks.0.mlp.fc1.weight"] == groups["norm.weight"] == 5
    assert groups["head.weight"] == 6
    coarse = group_parameters(small("dinat_s_tiny"), small("dinat_s_tiny").group_matcher(coarse=True), reverse=True)
    assert (coarse["layers.1.downsample.norm.weight"], coarse["norm.bias"], coarse["head.bias"]) == (2, 4, 5)
    one_level = small("dinat_isotropic_small")
    groups = group_parameters(one_level, one_level.group_matcher(), reverse=True)
    assert (groups["layers.0.attn.rpb"], groups["layers.2.norm2.weight"], groups["norm.weight"]) == (1, 3, 3)


def test_optimizers_of_timm_decay_the_position_biases_as_published():
    model = small("nat_small")
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    group = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    rpb, gamma, bias = (group[id(names[f"levels.3.blocks.0.{end}"])] for end in ("attn.rpb", "gamma1", "mlp.fc1.bias"))
    assert (rpb["weight_decay"], gamma["weight_decay"], bias["weight_decay"]) == (0.05, 0.0, 0.0)
    assert [group[id(names[name])]["lr_scale"] for name in ("head.weight", "norm.weight")] == [1.0, 0.5]


@pytest.mark.parametrize("entry", PREPROCESSING, ids=lambda entry: entry["image"][0])
def test_the_evaluation_transform_is_the_published_one(entry, deterministic):
    model = on_meta({224: "dinat_mini", 384: "dinat_large_384"}[entry["size"]])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.fromarray(deterministic.image(*entry["image"]).transpose(1, 2, 0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (transform(image) * std[:, None, None] + mean[:, None, None]) * 255
    expected = np.load(PARITY / "classification.npz")[f"preprocess.{entry['image'][0]}"]
    assert np.array_equal(pixels.round()[:, 3::8, 3::8].numpy(), expected)


@pytest.mark.parametrize("indices", [[4], [-5], 5, 0, [1, 1], []])
def test_stages_that_do_not_exist_are_refused(indices):
    model = small("dinat_mini")
    with pytest.raises(BackboneConfigError, match="the network has 4 stages, from 0 to 3"):
        model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=indices)


def test_intermediates_with_norm_and_in_either_order_of_axes():
    model, x = small("dinat_mini"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, indices=2, norm=True, output_fmt="NHWC")
        assert torch.equal(final, model.forward_features(x))
        assert torch.equal(maps[1], final)
        (last,) = model.forward_intermediates(x, indices=[-1], intermediates_only=True)
        assert torch.equal(model.norm(last.permute(0, 2, 3, 1)), final)
        early, (first,) = model.forward_intermediates(x, indices=[0], stop_early=True, output_fmt="NHWC")
        assert torch.equal(early, first)
    with pytest.raises(BackboneConfigError, match="output_fmt 'NLC': expected NCHW or NHWC"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_a_name_that_timm_has_is_replaced_with_a_warning():
    with pytest.warns(UserWarning, match=r"Overwriting nat_mini in registry with dinat_backbone\.timm\.nat_mini"):
        timm.models.register_model(dinat_backbone.timm.nat_mini)
    assert timm.models.model_entrypoint("nat_mini") is dinat_backbone.timm.nat_mini


def test_images_that_are_not_square_are_refused_for_a_fixed_size():
    assert small("vitrpb_small", img_size=64)(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(BackboneConfigError, match="img_size 64 x 32: expected a square"):
        small("vitrpb_small", img_size=(64, 32))
