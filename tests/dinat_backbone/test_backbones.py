"""The Detectron2 backbones of all families: contract, published names, agreement with the classifiers."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

from dinat_backbone import BackboneConfigError, create_classifier
from mask2former.checkpoint import build_empty_state, compare_backbone
from mask2former.config import setup_cfg

from ..conftest import ROOT

BASES = ROOT / "configs" / "_base_"
PUBLISHED = ROOT / "tests" / "published"
FAMILY = json.loads((PUBLISHED / "family.json").read_text())
DENSE = FAMILY["detection"] | FAMILY["segmentation"]
PANOPTIC = ROOT / "configs" / "coco" / "panoptic-segmentation"
UNPUBLISHED = [path for path in sorted(PANOPTIC.glob("dinat*/*.yaml")) if "IN21k_384" not in path.stem]
SMALL = {
    "D2DiNAT": "EMBED_DIM 8 DEPTHS [1,2,1,1] NUM_HEADS [1,1,1,1] KERNEL_SIZE 3 DILATIONS [[2],[1,2],[1],[1]]",
    "D2DiNATs": "EMBED_DIM 8 DEPTHS [1,2,1,1] NUM_HEADS [1,1,1,1] KERNEL_SIZE 3 DILATIONS [[2],[1,2],[1],[1]]",
    "D2IsotropicDiNAT": "EMBED_DIM 8 DEPTHS [2] NUM_HEADS [1] KERNEL_SIZE 3 DILATIONS [[1,2]]",
    "D2ViTRpb": "EMBED_DIM 8 DEPTHS [2] NUM_HEADS [1] IMAGE_SIZE 64",
}


def options(text: str) -> list[str]:
    words = text.split()
    return [word if index % 2 else f"MODEL.DINAT.{word}" for index, word in enumerate(words)]


def small_backbone(name: str, *opts: str) -> Backbone:
    base = BASES / "mask2former.yaml"
    cfg = setup_cfg(
        base, ["MODEL.BACKBONE.NAME", name, *options(SMALL[name]), "MODEL.DINAT.DROP_PATH_RATE", "0", *opts]
    )
    return build_backbone(cfg, ShapeSpec(channels=3))


def base_of(stem: str) -> Path:
    """The base file of the backbone of a published model such as cascadedmaskrcnn_dinat_s_tiny or nat_mini_upernet."""
    words = stem.removesuffix("_upernet").removesuffix("_cascademaskrcnn").removesuffix("_maskrcnn")
    return BASES / f"{words.removeprefix('upernet_').removeprefix('cascadedmaskrcnn_').removeprefix('maskrcnn_')}.yaml"


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (33, 40)])
@pytest.mark.parametrize("name", [name for name in SMALL if name != "D2ViTRpb"])
def test_maps_have_the_announced_shapes(name, size):
    check_maps(name, size)


def test_maps_of_one_size():
    check_maps("D2ViTRpb", (64, 64))


def check_maps(name: str, size: tuple[int, int]) -> None:
    backbone = small_backbone(name)
    assert isinstance(backbone, BACKBONE_REGISTRY.get(name))
    outputs, shapes = backbone(torch.randn(2, 3, *size)), backbone.output_shape()
    assert list(outputs) == list(shapes)
    assert list(shapes) == (["res2", "res3", "res4", "res5"] if name.startswith("D2DiNAT") else ["res4"])
    for key, x in outputs.items():
        stride = shapes[key].stride
        assert x.shape == (2, shapes[key].channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_get_no_gradients_and_stay_in_evaluation(name):
    backbone = small_backbone(name, "MODEL.BACKBONE.FREEZE_AT", "1").train()
    sum(x.square().sum() for x in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == key.startswith("patch_embed."), key
    assert not backbone.patch_embed.training
    with pytest.raises(BackboneConfigError, match="freeze_at must be from 0"):
        small_backbone(name, "MODEL.BACKBONE.FREEZE_AT", "7")


@pytest.mark.parametrize("name", SMALL)
def test_activation_checkpointing_changes_nothing(name):
    gradients = []
    image = torch.randn(1, 3, 64, 64)
    for use_checkpoint in ("False", "True"):
        torch.manual_seed(1)
        backbone = small_backbone(name, "MODEL.DINAT.USE_CHECKPOINT", use_checkpoint).train()
        sum(x.square().sum() for x in backbone(image).values()).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("D2DiNATs", "PATCH_SIZE 8", "MODEL.DINAT.PATCH_SIZE is 8, but D2DiNATs has no such setting"),
        ("D2IsotropicDiNAT", "KERNEL_SIZES [3]", "MODEL.DINAT.KERNEL_SIZES is .* but D2IsotropicDiNAT has no such"),
        ("D2ViTRpb", "DILATIONS [[1,2]]", "MODEL.DINAT.DILATIONS is .* but D2ViTRpb has no such"),
        ("D2IsotropicDiNAT", "DEPTHS [1,1]", r"depths must have one entry, for the one resolution, got \[1, 1\]"),
        ("D2IsotropicDiNAT", "DILATIONS [[1]]", "dilations must be one list of 2 entries"),
        ("D2ViTRpb", "IMAGE_SIZE 60", "image_size 60 is not a multiple of patch_size 16"),
    ],
)
def test_settings_that_a_backbone_does_not_have_are_named(name, opts, message):
    with pytest.raises(BackboneConfigError, match=message):
        small_backbone(name, *options(opts))


@pytest.mark.parametrize("name", SMALL)
def test_a_backend_can_be_chosen_for_all(name):
    """Exports do so for every model."""
    image = torch.randn(1, 3, 64, 64)
    usual, exportable = small_backbone(name), small_backbone(name, "MODEL.DINAT.ATTENTION_BACKEND", "exportable")
    exportable.load_state_dict(usual.state_dict())
    for key, x in exportable(image).items():
        torch.testing.assert_close(x, usual(image)[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stem", DENSE)
def test_bases_have_the_names_and_architectures_of_published_models(stem):
    facts = DENSE[stem]["backbone"]
    dilations = str([[1] * depth for depth in facts["depths"]] if facts["family"] == "NAT" else facts["dilations"])
    kernel = str(facts["kernel_size"])
    cfg = setup_cfg(base_of(stem), ["MODEL.DINAT.DILATIONS", dilations, "MODEL.DINAT.KERNEL_SIZE", kernel])
    node = cfg.MODEL.DINAT
    for key in ("embed_dim", "depths", "num_heads", "mlp_ratio", "layer_scale"):
        assert node[key.upper()] == facts[key], key
    with torch.device("meta"):
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    path = PUBLISHED / "state_dicts" / DENSE[stem]["checkpoint"]["state_dict"]
    names = json.loads(gzip.decompress(path.read_bytes()))
    published = {key: shape for key, shape in names.items() if key.startswith("backbone.")}
    assert {f"backbone.{key}": list(value.shape) for key, value in backbone.state_dict().items()} == published


@pytest.mark.parametrize("family", ["nat", "dinat", "dinat_s"])
def test_coco_dilations_are_those_of_the_bases(family):
    for stem, entry in FAMILY["detection"].items():
        if base_of(stem).stem.rpartition("_")[0] == family and "large" not in stem.replace("dinat_s_large", ""):
            published = entry["backbone"]["dilations"]
            ours = setup_cfg(base_of(stem)).MODEL.DINAT.DILATIONS
            assert (ours or [[1] * depth for depth in entry["backbone"]["depths"]]) == published, stem


@pytest.mark.parametrize("name", ["dinat_mini", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small"])
def test_backbones_compute_the_features_of_classifiers(name):
    backbone_name = {"dinat_mini": "D2DiNAT", "dinat_s_tiny": "D2DiNATs", "dinat_isotropic_small": "D2IsotropicDiNAT"}
    backbone = small_backbone(backbone_name.get(name, "D2ViTRpb")).eval()
    shape = {"embed_dim": 8, "num_heads": [1, 1, 1, 1], "depths": [1, 2, 1, 1], "dilations": [[2], [1, 2], [1], [1]]}
    if "small" in name:
        shape = {"embed_dim": 8, "num_heads": [1], "depths": [2]}
        shape |= {"dilations": [[1, 2]], "kernel_size": 3} if "dinat" in name else {"image_size": 64}
    else:
        shape["kernel_size"] = 3
    ratio = setup_cfg(BASES / "mask2former.yaml").MODEL.DINAT.MLP_RATIO
    classifier = create_classifier(name, num_classes=2, mlp_ratio=ratio, **shape).eval()
    state = backbone.state_dict()
    last = "norm" if "norm.weight" in state else "norm3"
    named = {key.replace(f"{last}.", "norm.", 1) if key.startswith(last) else key: v for key, v in state.items()}
    named = {key: value for key, value in named.items() if key in classifier.state_dict()}
    classifier.load_state_dict(named, strict=False)
    image = torch.randn(1, 3, 64, 64)
    *_, output = backbone(image).values()
    torch.testing.assert_close(output.permute(0, 2, 3, 1), classifier.forward_features(image), rtol=0, atol=0)


@pytest.mark.parametrize("path", UNPUBLISHED, ids=lambda path: path.stem)
def test_mask2former_takes_the_whole_family(path):
    """Each config builds, and the classifier that it names starts its training with nothing left over."""
    cfg = setup_cfg(path)
    model = build_empty_state(cfg)
    stem = Path(cfg.MODEL.WEIGHTS).stem
    facts = PUBLISHED / "state_dicts" / f"state_dict_{stem}.json.gz"
    names = json.loads(gzip.decompress(facts.read_bytes()))
    state = {key: torch.empty(shape, device="meta") for key, shape in names.items()}
    taken, report = compare_backbone(state, model)
    assert report.exact and not report.resized
    assert len(taken) == sum(key.startswith("backbone.") for key in model) - 8, "all but the norms of the outputs"
