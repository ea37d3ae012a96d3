"""UPerNet against numbers measured on the published code (float32, CPU), and its windows, losses and errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.resizing import build_test_resize
from mask2former.modeling import inference
from mask2former.test_time_augmentation import SemanticSegmentorWithTTA

from .upernet import IMAGES, MODELS, PUBLISHED, make_model, published_weights, settings

# Largest absolute difference of maps, logits and probabilities.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=IMAGES, ids=lambda pair: ".".join(pair))
def case(request, deterministic):
    """Name of a model and of an image of the fixture, the config, the model and the image."""
    name, image = request.param
    cfg = settings(name)
    height, width = MODELS[name]["images"][image]["size"]
    model = make_model(cfg, published_weights(name, deterministic))
    return name, image, cfg, model, deterministic.image(image, height, width)


def published(case, output):
    return torch.from_numpy(PUBLISHED[f"{case[0]}.{case[1]}.{output}"])


def check_class_map(case, got, output):
    """Class maps are equal but for pixels whose two best logits are nearly equal."""
    ties = MODELS[case[0]]["images"][case[1]]["pixels_with_margin_below_1e3"]
    differing = int((got != published(case, output)).sum())
    assert differing <= ties


@torch.no_grad()
def test_every_map(case):
    _, _, _, model, pixels = case
    normalised = (torch.from_numpy(pixels) - model.pixel_mean) / model.pixel_std
    features = model.backbone(normalised[None])
    got = {key: features[key][0, ::4, ::2, ::2] for key in ("res2", "res3", "res4", "res5")}
    got["logits"] = model.sem_seg_head(features)[0, :, ::2, ::2]
    got["aux_logits"] = model.auxiliary_head(features)[0]
    for key, value in got.items():
        torch.testing.assert_close(value, published(case, key), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_whole_images(case):
    _, _, _, model, pixels = case
    inputs = [{"image": torch.from_numpy(pixels)}]
    (scores,) = model.predict(inputs)
    logits = torch.cat([strip for _, strip in scores.resized(pixels.shape[1:]).strips()], 1)
    torch.testing.assert_close(logits[:, ::6, ::6], published(case, "whole.logits"), rtol=0, atol=TOLERANCE)
    (result,) = model(inputs)
    assert torch.equal(result["sem_seg"], logits.softmax(0))
    check_class_map(case, result["sem_seg"].argmax(0), "whole.class_map")


@torch.no_grad()
def test_windows(case, deterministic):
    name, _, cfg, _, pixels = case
    cfg = cfg.clone()
    cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE, cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_STRIDE = [64, 64], [43, 43]
    model = make_model(cfg, published_weights(name, deterministic))
    (scores,) = model.predict([{"image": torch.from_numpy(pixels)}])
    assert scores.logits.shape[1:] == pixels.shape[1:]
    torch.testing.assert_close(scores.logits[:, ::6, ::6], published(case, "slide.logits"), rtol=0, atol=TOLERANCE)
    ids = inference.run(scores, scores.image_size, inference.InferenceSettings(semantic_scores=False))["sem_seg"]
    check_class_map(case, ids, "slide.class_map")


@torch.no_grad()
def test_test_input_and_results_at_the_original_size(case):
    name, image, cfg, model, pixels = case
    photograph = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    resized = build_test_resize(cfg).get_transform(photograph).apply_image(photograph)
    assert list(resized.shape[:2]) == MODELS[name]["images"][image]["ss_inputs"][0]
    inputs = {"image": torch.from_numpy(resized.transpose(2, 0, 1).copy())}
    normalised = (inputs["image"] - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(normalised[:, ::4, ::4], published(case, "ss.input"), rtol=0, atol=1e-5)
    inputs |= {"height": pixels.shape[1], "width": pixels.shape[2]}
    (result,) = model([inputs])
    torch.testing.assert_close(result["sem_seg"][:, ::6, ::6], published(case, "ss.prob"), rtol=0, atol=TOLERANCE)
    check_class_map(case, result["sem_seg"].argmax(0), "ss.class_map")
    (ids,) = model([inputs], settings=inference.InferenceSettings(semantic_scores=False))
    assert torch.equal(ids["sem_seg"], result["sem_seg"].argmax(0))


@torch.no_grad()
def test_multi_scale(case, tmp_path):
    """Twelve passes, of the original image: the file, where the input is resized."""
    name, image, cfg, model, pixels = case
    photograph = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    Image.fromarray(photograph).save(tmp_path / "image.png")
    resized = build_test_resize(cfg).get_transform(photograph).apply_image(photograph)
    inputs = {"image": torch.from_numpy(resized.transpose(2, 0, 1).copy()), "file_name": str(tmp_path / "image.png")}
    inputs |= {"height": pixels.shape[1], "width": pixels.shape[2]}
    averaging = SemanticSegmentorWithTTA(cfg, model)
    sizes = [list(view["image"].shape[1:]) for view, _ in averaging.views({"image": torch.from_numpy(pixels)})]
    assert sizes == MODELS[name]["images"][image]["ms_inputs"]
    (result,) = averaging([inputs])
    torch.testing.assert_close(result["sem_seg"][:, ::6, ::6], published(case, "ms.prob"), rtol=0, atol=TOLERANCE)
    check_class_map(case, result["sem_seg"].argmax(0), "ms.class_map")
