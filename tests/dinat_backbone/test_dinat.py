"""The backbone: contract with Detectron2, sizes, freezing, checkpointing."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

from dinat_backbone import BackboneConfigError, D2DiNAT, DiNAT
from mask2former.config import setup_cfg

from ..conftest import ROOT

SIZES = {"mini": 20e6, "tiny": 28e6, "small": 51e6, "base": 90e6, "large": 200e6}


def small_backbone(**settings) -> DiNAT:
    defaults = {
        "embed_dim": 16,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "kernel_size": 3,
        "dilations": [[2], [1, 2], [1], [1]],
        "drop_path_rate": 0.0,
    }
    return DiNAT(**defaults | settings)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    """Parameter counts are those of the paper (arXiv 2209.15001, table 2), which are rounded, less a classifier."""
    cfg = setup_cfg(ROOT / "configs" / "_base_" / f"dinat_{size}.yaml")
    with torch.device("meta"):
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert isinstance(backbone, D2DiNAT)
    parameters = sum(p.numel() for p in backbone.parameters())
    assert parameters == pytest.approx(SIZES[size], rel=0.04)
    has_scale = any(name.endswith("gamma1") for name, _ in backbone.named_parameters())
    assert has_scale == (size == "base")


def test_registered_under_its_published_name():
    assert BACKBONE_REGISTRY.get("D2DiNAT") is D2DiNAT


@pytest.mark.parametrize("height,width", [(64, 96), (65, 71), (8, 8), (33, 40)])
def test_maps_have_the_announced_shapes_for_any_size(height, width):
    backbone = small_backbone()
    outputs = backbone(torch.randn(2, 3, height, width))
    shapes = backbone.output_shape()
    assert list(outputs) == list(shapes) == ["res2", "res3", "res4", "res5"]
    for name, x in outputs.items():
        stride = shapes[name].stride
        assert x.shape == (2, shapes[name].channels, -(-height // stride), -(-width // stride))


def test_chosen_outputs_only():
    backbone = small_backbone(out_features=["res3", "res5"])
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ["res3", "res5"]
    assert not hasattr(backbone, "norm0")


def test_modes_return_the_module_and_reach_all_parts():
    backbone = small_backbone()
    assert backbone.train() is backbone
    assert all(module.training for module in backbone.modules())
    assert backbone.eval() is backbone
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_as_in_a_resnet(freeze_at):
    backbone = small_backbone(freeze_at=freeze_at).train()
    stages = [backbone.patch_embed, *backbone.levels]
    for stage, module in enumerate(stages):
        frozen = stage < freeze_at
        assert all(p.requires_grad != frozen for p in module.parameters())
        assert module.training != frozen
    assert backbone.norm0.weight.requires_grad == (freeze_at < 2)
    loss = sum(x.sum() for x in backbone(torch.randn(1, 3, 32, 32)).values())
    assert loss.requires_grad == (freeze_at < 5)


@pytest.mark.parametrize("freeze_at", [0, 3])
def test_activation_checkpointing_changes_nothing(freeze_at):
    image = torch.randn(1, 3, 48, 48)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(3)
        backbone = small_backbone(use_checkpoint=use_checkpoint, freeze_at=freeze_at).train()
        sum(x.square().mean() for x in backbone(image).values()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert sum(gradient is None for gradient in gradients[0]) == sum(not p.requires_grad for p in backbone.parameters())
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_frozen_levels_keep_nothing_for_a_backward_pass():
    backbone = small_backbone(use_checkpoint=True, freeze_at=5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        backbone(torch.randn(1, 3, 32, 32))
    assert kept == []


def test_position_bias_and_layer_scale_are_switches():
    names = dict(small_backbone(rel_pos_bias=False, layer_scale=0.5).named_parameters())
    assert not any(name.endswith("rpb") for name in names)
    assert float(names["levels.0.blocks.0.gamma2"].mean().detach()) == 0.5


def test_drop_path_rises_linearly_and_acts_in_training_only():
    backbone = small_backbone(drop_path_rate=0.4)
    rates = [block.drop_path.p for level in backbone.levels for block in level.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(1, 3, 32, 32)
    backbone.eval()
    torch.testing.assert_close(backbone(image)["res5"], backbone(image)["res5"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": [[1], [1], [1], [1]]}, r"dilations must have one entry per block: lengths \[1, 2, 1, 1\]"),
        ({"num_heads": [1, 2]}, "num_heads must have one entry per level"),
        ({"kernel_sizes": [3]}, "kernel_sizes must have one entry per level"),
        ({"out_features": ["res9"]}, "out_features must be among"),
        ({"num_heads": [3, 3, 3, 3]}, "dim 16 is not a multiple of num_heads 3"),
        ({"freeze_at": 6}, r"freeze_at must be from 0 \(nothing\) to 5 \(everything\), got 6"),
        ({"attention_backend": "magic"}, "unknown attention backend 'magic'"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"dilations": [[0], [1, 1], [1], [1]]}, "dilation must be at least 1, got 0"),
    ],
)
def test_contradictory_settings_are_named(settings, message):
    with pytest.raises(BackboneConfigError, match=message):
        small_backbone(**settings)


def test_parts_of_a_large_map_give_what_the_whole_gives():
    torch.manual_seed(0)
    backbone = small_backbone().eval()
    image = torch.randn(1, 3, 300, 290)
    whole = backbone(image)
    with torch.no_grad():
        parts = backbone(image)
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x.detach())
