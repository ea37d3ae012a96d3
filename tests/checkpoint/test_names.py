import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import mask2former.maskformer_model  # noqa: F401 - registers the meta-architecture
from mask2former.checkpoint import Checkpointer, CheckpointMismatchError, compare, compare_backbone
from mask2former.checkpoint.names import resize_bias_table
from mask2former.model_zoo import SETTINGS
from tests.conftest import ROOT, config_path, golden, load_script
from tests.tiny import TINY

# Depths, heads of the first level, MLP ratio and layer scale of the published classifiers; head dim 32, kernel 7.
CLASSIFIERS = {
    "mini": ([3, 4, 6, 5], 2, 3, False),
    "tiny": ([3, 4, 18, 5], 2, 3, False),
    "small": ([3, 4, 18, 5], 3, 2, False),
    "base": ([3, 4, 18, 5], 4, 2, True),
    "large": ([3, 4, 18, 5], 6, 2, False),
}
PANOPTIC = "configs/coco/panoptic-segmentation/dinat/maskformer2_dinat_large_IN21k_384_bs16_100ep.yaml"


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def block(name, dim, heads, mlp_ratio, layer_scale, kernel):
    shapes = {f"{name}.gamma1": (dim,), f"{name}.gamma2": (dim,)} if layer_scale else {}
    shapes |= norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
    shapes[f"{name}.attn.rpb"] = (heads, 2 * kernel - 1, 2 * kernel - 1)
    shapes |= linear(f"{name}.attn.qkv", dim, 3 * dim) | linear(f"{name}.attn.proj", dim, dim)
    hidden = int(mlp_ratio * dim)
    return shapes | linear(f"{name}.mlp.fc1", dim, hidden) | linear(f"{name}.mlp.fc2", hidden, dim)


def classifier_shapes(depths, heads, mlp_ratio, layer_scale, *, kernel=7, classes=1000, head_dim=32):
    """Names and shapes of a checkpoint of the DiNAT authors' ImageNet classifiers (their classification/nat.py)."""
    dim = head_dim * heads
    shapes = {"patch_embed.proj.0.weight": (dim // 2, 3, 3, 3), "patch_embed.proj.0.bias": (dim // 2,)}
    shapes |= {"patch_embed.proj.1.weight": (dim, dim // 2, 3, 3), "patch_embed.proj.1.bias": (dim,)}
    shapes |= norm("patch_embed.norm", dim)
    for level, depth in enumerate(depths):
        width = dim * 2**level
        for index in range(depth):
            name = f"levels.{level}.blocks.{index}"
            shapes |= block(name, width, heads * 2**level, mlp_ratio, layer_scale, kernel)
        if level + 1 < len(depths):
            shapes[f"levels.{level}.downsample.reduction.weight"] = (2 * width, width, 3, 3)
            shapes |= norm(f"levels.{level}.downsample.norm", 2 * width)
    return shapes | norm("norm", width) | linear("head", width, classes)


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model_names():
    """Function that returns the state dict of a config's model, without values."""
    return load_script("tools/convert_weights.py").model_names


@pytest.fixture(scope="module")
def sizes(tmp_path_factory, model_names):
    """Names and shapes of a model for each size of the backbone."""
    folder = tmp_path_factory.mktemp("configs")
    models = {}
    for size in CLASSIFIERS:
        bases = [str(ROOT / "configs" / "_base_" / f"{name}.yaml") for name in ("mask2former", f"dinat_{size}")]
        (folder / f"{size}.yaml").write_text(f"_BASE_: {bases}")
        models[size] = model_names(folder / f"{size}.yaml", ["DATASETS.TRAIN", "('shapes_train_panoptic',)"])
    return models


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("size", CLASSIFIERS)
def test_classifiers_of_all_sizes_start_a_training(sizes, size, prefix):
    shapes = classifier_shapes(*CLASSIFIERS[size])
    state = meta({name if name.startswith(("norm.", "head.")) else prefix + name: s for name, s in shapes.items()})
    weights, report = compare_backbone(state, sizes[size])
    assert report.exact
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(weights) == set(report.loaded)
    assert {name for name in report.initial if name.startswith("backbone.")} == {
        f"backbone.norm{level}.{name}" for level in range(4) for name in ("weight", "bias")
    }
    assert set(report.loaded) | set(report.initial) == set(sizes[size])
    assert all(weights[name].shape == sizes[size][name].shape for name in weights)
    blocks = sum(CLASSIFIERS[size][0])
    assert len(report.resized) == (blocks if size == "large" else 0), "kernel 7 in all sizes but large, 11 there"


def test_parameters_of_the_classifiers_are_the_published_numbers():
    """20, 28, 51, 90 and 200 million: DiNAT, arXiv 2209.15001, table 4."""
    millions = [
        sum(int(np.prod(shape)) for shape in classifier_shapes(*settings).values()) / 1e6
        for settings in CLASSIFIERS.values()
    ]
    assert [round(number) for number in millions] == [20, 28, 51, 90, 201]


def test_another_size_is_refused_and_only_backbone_names_are_listed(sizes):
    _, report = compare_backbone(meta(classifier_shapes(*CLASSIFIERS["mini"])), sizes["tiny"])
    assert len(report.missing) == 12 * 13, "blocks 6 to 17 of level 2"
    assert all(name.startswith("backbone.levels.2.blocks.") for name in report.missing)
    assert not report.unexpected and not report.differing
    _, report = compare_backbone(meta(classifier_shapes(*CLASSIFIERS["tiny"])), sizes["mini"])
    assert len(report.unexpected) == 12 * 13
    _, report = compare_backbone(meta(classifier_shapes(*CLASSIFIERS["small"])), sizes["large"])
    assert "backbone.levels.0.blocks.0.attn.rpb" in report.differing, "another number of heads is not resized"


def test_bias_tables_are_resized_as_opencv_does():
    """OpenCV's cubic: coefficient -0.75, edges aligned, borders repeated."""
    table = torch.randn(3, 13, 13)
    resized = resize_bias_table(table, 21)
    assert resized.shape == (3, 21, 21)
    for ours, source in zip(resized.numpy(), table.numpy(), strict=True):
        np.testing.assert_allclose(ours, cv2.resize(source, (21, 21), interpolation=cv2.INTER_CUBIC), atol=1e-5)
    torch.testing.assert_close(resized[:, 10, 10], table[:, 6, 6])  # no offset stays no offset
    torch.testing.assert_close(resize_bias_table(torch.full((2, 13, 13), 0.7), 21), torch.full((2, 21, 21), 0.7))
    torch.testing.assert_close(resize_bias_table(table.flip(1), 21), resized.flip(1))
    torch.testing.assert_close(resize_bias_table(table.mT, 21), resized.mT)
    assert resize_bias_table(table.half(), 21).dtype == torch.float16


@pytest.fixture(scope="module")
def tiny():
    """A small model with kernel 11, and weights of a classifier with its backbone and kernel 7."""
    changes = "MODEL.DINAT.EMBED_DIM 32 MODEL.DINAT.KERNEL_SIZE 11 MODEL.DINAT.MLP_RATIO 3.0".split()
    cfg = load_script("train_net.py").get_config(ROOT / PANOPTIC, [*TINY, *changes])
    shapes = classifier_shapes([1, 1, 1, 1], 1, 3, False)
    generator = torch.Generator().manual_seed(3)
    return build_model(cfg), {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("container", [None, "model", "state_dict"])
def test_an_imagenet_classifier_is_loaded_resized_and_reported(tiny, tmp_path, caplog, container):
    model, state = tiny
    torch.save(state if container is None else {container: state, "epoch": 300}, tmp_path / "dinat.pth")
    checkpointer = Checkpointer(model, starts_training=True)
    with caplog.at_level("INFO"):
        checkpointer.load(str(tmp_path / "dinat.pth"), checkpointables=[])
    loaded = model.state_dict()
    assert torch.equal(loaded["backbone.levels.1.blocks.0.mlp.fc1.weight"], state["levels.1.blocks.0.mlp.fc1.weight"])
    rpb = state["levels.2.blocks.0.attn.rpb"]
    assert torch.equal(loaded["backbone.levels.2.blocks.0.attn.rpb"], resize_bias_table(rpb, 21))
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["resized", "backbone.levels.2.blocks.0.attn.rpb", "4x13x13", "4x21x21"] in lines
    assert ["dropped", "head.weight", "1000x256"] in lines
    assert ["missing", "backbone.norm0", "2", "weights,", "as", "initialised"] in lines
    assert ["loaded", "backbone.patch_embed", "6", "weights", "6", "weights"] in lines


def test_a_classifier_interpolated_already_is_loaded_as_it_is(tiny, tmp_path):
    model, state = tiny
    state = {name: resize_bias_table(v, 21) if name.endswith("rpb") else v for name, v in state.items()}
    torch.save(state, tmp_path / "dinat.pth")
    checkpointer = Checkpointer(model, starts_training=True)
    checkpointer.load(str(tmp_path / "dinat.pth"))
    assert checkpointer.report.resized == {}
    assert torch.equal(model.state_dict()["backbone.levels.0.blocks.0.attn.rpb"], state["levels.0.blocks.0.attn.rpb"])


def test_what_a_classifier_should_not_have_is_an_error_unless_partial(tiny, tmp_path):
    model, state = tiny
    torch.save({**state, "head2.weight": torch.zeros(2)}, tmp_path / "dinat.pth")
    with pytest.raises(CheckpointMismatchError, match=r"backbone\.head2\.weight +2 +unknown"):
        Checkpointer(model, starts_training=True).load(str(tmp_path / "dinat.pth"))
    checkpointer = Checkpointer(model, starts_training=True, allow_partial=True)
    checkpointer.load(str(tmp_path / "dinat.pth"))
    assert set(checkpointer.report.unexpected) == {"backbone.head2.weight"}


def test_a_classifier_is_no_model_to_evaluate(tiny, tmp_path):
    model, state = tiny
    torch.save(state, tmp_path / "dinat.pth")
    with pytest.raises(CheckpointMismatchError, match="It holds only a backbone, which can start a training"):
        Checkpointer(model).load(str(tmp_path / "dinat.pth"))


def test_a_whole_model_of_another_kernel_size_is_not_resized(tiny):
    model, _ = tiny
    state = model.state_dict()
    name = "backbone.levels.0.blocks.0.attn.rpb"
    weights, report = compare({**state, name: state[name][:, :13, :13]}, state)
    assert report.differing == {name: ((1, 13, 13), (1, 21, 21))}
    assert name not in weights


def test_the_golden_names_of_the_eight_settings_match_their_models(model_names):
    for setting in SETTINGS:
        published = meta(golden("state_dict", setting))
        _, report = compare(published, model_names(config_path(setting)))
        assert report.exact and len(report.loaded) == 706
