"""The classifier against numbers measured on the published code, and its weights in both forms of their names."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.checkpoint import Checkpointer, CheckpointMismatchError
from tests.conftest import ROOT, config_path
from tests.tiny import TINY

FIXTURE = json.loads((ROOT / "tests/parity/classification.json").read_text())
OUTPUTS = np.load(ROOT / "tests/parity/classification.npz")
BASE = ROOT / "configs/_base_/classification.yaml"
MODELS = FIXTURE["models"]
BACKBONES = {"hierarchical": "D2DiNAT", "dinats": "D2DiNATs", "iso": "D2IsotropicDiNAT", "vit": "D2ViTRpb"}


def classifier(name="nat", **changes):
    settings, kind = {**MODELS[name]["settings"], **changes}, MODELS[name]["kind"]
    cfg = setup_cfg(BASE, ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", BACKBONES[kind]])
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = settings.pop("num_classes")
    if kind in ("hierarchical", "dinats"):
        settings["out_features"] = ["res5"]
        # The published code takes no notice of more dilations than blocks.
        pairs = zip(settings.get("dilations", ()), settings["depths"], strict=False)
        settings["dilations"] = [dilations[:depth] for dilations, depth in pairs]
    else:
        depth, image_size = settings.pop("depth"), settings.pop("img_size")
        settings |= {"depths": [depth], "num_heads": [settings["num_heads"]]}
        if kind == "iso":
            settings["dilations"] = [([1, settings.pop("dilation")] * depth)[:depth]]
        else:
            settings["image_size"] = image_size
    for key, value in settings.items():
        cfg.MODEL.DINAT[key.upper()] = value
    return build_model(cfg).eval()


def published_file(name, folder, deterministic):
    """The bare state dict of a shrunken published model, as its authors save it."""
    state = {}
    for key, shape in MODELS[name]["state"].items():
        if key.endswith("relative_position_index"):
            state[key] = classifier(name).state_dict()[f"backbone.{key}"]
            continue
        value = torch.from_numpy(deterministic.weight(key, shape))
        state[key] = value * 5 if key.endswith(("gamma1", "gamma2")) else value
    path = folder / f"{name}.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_published_file_loads_completely_and_its_logits_are_the_published_ones(name, tmp_path, deterministic):
    model = classifier(name)
    checkpointer = Checkpointer(model)
    checkpointer.load(str(published_file(name, tmp_path, deterministic)))
    report = checkpointer.report
    assert report.exact and not (report.dropped or report.initial or report.resized)
    assert len(report.loaded) == len(MODELS[name]["state"]) == len(model.state_dict())
    image = torch.from_numpy(deterministic.image(*MODELS[name]["image"]))
    with torch.no_grad():
        (output,) = model.predict([{"image": image}])
        (results,) = model([{"image": image}])
    assert np.abs(output.logits.numpy() - OUTPUTS[f"{name}.logits"]).max() < 3e-5
    torch.testing.assert_close(results["class_scores"], output.logits.softmax(0))


def test_another_class_count_starts_a_training_with_a_new_head_and_is_refused_otherwise(
    tmp_path, deterministic, caplog
):
    path = str(published_file("nat", tmp_path, deterministic))
    model = classifier(num_classes=3)
    head = model.head.weight.clone()
    with caplog.at_level("INFO"):
        Checkpointer(model, starts_training=True).load(path)
    assert "has 10 classes, the model has 3: only the class head starts from random weights" in caplog.text
    assert torch.equal(model.head.weight, head)
    loaded = torch.from_numpy(deterministic.weight("norm.weight", (256,)))
    assert torch.equal(model.backbone.norm3.weight, loaded)
    with pytest.raises(CheckpointMismatchError, match=r"has 10 classes, MODEL\.CLASSIFIER\.NUM_CLASSES is 3"):
        Checkpointer(model).load(path)


@pytest.mark.parametrize("trained_here", [False, True])
def test_a_classifier_starts_a_dense_model_without_its_norm_and_head(trained_here, tmp_path, deterministic):
    path = published_file("nat", tmp_path, deterministic)
    if trained_here:
        model = classifier()
        Checkpointer(model).load(str(path))
        path = tmp_path / "own.pth"
        torch.save({"model": model.state_dict()}, path)
    keys = "MODEL.DINAT.DEPTHS [2,2,2,2] MODEL.DINAT.DILATIONS [] MODEL.DINAT.KERNEL_SIZE 7 MODEL.DINAT.MLP_RATIO 3.0"
    dense = build_model(setup_cfg(config_path("coco-panoptic"), [*TINY, *keys.split()]))
    checkpointer = Checkpointer(dense, starts_training=True)
    checkpointer.load(str(path))
    assert set(checkpointer.report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert bool((dense.backbone.norm3.weight == 1).all())


def test_losses_of_parts_add_up_to_that_of_the_batch_and_distributions_are_targets_too():
    model = classifier().train()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = [{"image": image, "label": label} for image, label in zip(images, (0, 3, 9, 3), strict=True)]
    with torch.no_grad():
        torch.manual_seed(0)
        model.eval()
        whole = model.losses(batch)["loss_cls"]
        parts = [model.losses(part, model.count_targets(batch))["loss_cls"] for part in (batch[:1], batch[1:])]
        smoothed = torch.full((4, 10), 0.01)
        smoothed[range(4), [0, 3, 9, 3]] = 0.91
        given = model.losses([{**one, "label": target} for one, target in zip(batch, smoothed, strict=True)])
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(given["loss_cls"], whole)
