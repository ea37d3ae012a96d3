"""transformers' own Mask2Former as a second opinion on ours: outputs, losses, results and input."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

import mask2former.maskformer_model  # noqa: F401 - registers the meta-architecture
from mask2former.checkpoint import build_empty_state, compare, from_transformers, to_transformers
from mask2former.config import setup_cfg
from mask2former.data.resizing import build_test_resize
from mask2former.export import ExportError
from mask2former.export.transformers_folder import (
    build_config,
    build_empty_transformers_state,
    build_image_processor,
    with_class_weights,
)
from mask2former.model_zoo import SETTINGS
from mask2former.modeling import inference
from mask2former.modeling.inference import InferenceSettings, Queries
from tests.conftest import config_path, load_script
from tests.tiny import TINY

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
pytest.importorskip("dinat_backbone.transformers")
SizeDict = transformers.image_utils.SizeDict

deterministic = load_script("tools/deterministic_weights.py")
# Five layers use every level of the pixel decoder twice; windows of 42 positions are larger than the maps.
SMALL = [
    *TINY,
    *("MODEL.DINAT.DILATIONS", "[[14],[7],[3],[1]]"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "6", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "200"),
]


def make_pair(setting="coco-panoptic", opts=()):
    """Our model and transformers', with the same deterministic weights."""
    cfg = setup_cfg(config_path(setting), [*SMALL, *opts])
    ours = deterministic.load_weights(build_model(cfg)).eval()
    theirs = transformers.Mask2FormerForUniversalSegmentation(build_config(cfg)).eval()
    theirs.load_state_dict(to_transformers(ours.state_dict()))
    return cfg, ours, theirs


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def error(ours, theirs):
    """Largest difference, relative to the range of the values."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / (ours.max() - ours.min()))


def errors(ours, theirs, pixels):
    """Differences of the class and mask logits of all layers."""
    with torch.no_grad():
        outputs = ours.sem_seg_head(ours.backbone(pixels))
        other = theirs(pixels, output_auxiliary_logits=True)
    layers = [*outputs["aux_outputs"], outputs]
    other_layers = [*other.auxiliary_logits, other]
    assert len(layers) == len(other_layers) > 1
    names = {"pred_logits": "class_queries_logits", "pred_masks": "masks_queries_logits"}
    return [
        error(layer[name], other_layer[other_name])
        for layer, other_layer in zip(layers, other_layers, strict=True)
        for name, other_name in names.items()
    ]


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_names_and_shapes_of_the_eight_settings(setting):
    cfg = setup_cfg(config_path(setting))
    ours = build_empty_state(cfg)
    renamed = to_transformers(ours)
    theirs = build_empty_transformers_state(build_config(cfg))
    assert len(ours) == 706 and len(theirs) == 862
    assert renamed.keys() == theirs.keys() and compare(renamed, theirs)[1].exact
    back = from_transformers(renamed)
    assert back.keys() == ours.keys() and compare(back, ours)[1].exact


@pytest.mark.parametrize("setting", ["cityscapes-semantic", "ade20k-instance"])
def test_outputs_of_two_settings(setting):
    _, ours, theirs = make_pair(setting)
    image = torch.from_numpy(deterministic.image("two", 70, 93)).float()
    # At most 5e-7 was measured, for all eight settings.
    assert max(errors(ours, theirs, ours.preprocess([{"image": image}]).tensor)) < 1e-5


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("size", [(64, 96), (70, 93), (33, 160)])
def test_outputs_of_all_layers(pair, size, padded):
    _, ours, theirs = pair
    image = torch.from_numpy(deterministic.image("layers", *size)).float()
    pixels = (
        ours.preprocess([{"image": image}]).tensor if padded else ((image - ours.pixel_mean) / ours.pixel_std)[None]
    )
    assert max(errors(ours, theirs, pixels)) < 1e-5


def test_outputs_of_a_batch_whose_images_are_padded(pair):
    """Neither model masks the padding."""
    _, ours, theirs = pair
    images = [torch.from_numpy(deterministic.image(f"batch{size}", *size)).float() for size in ((64, 90), (48, 120))]
    assert max(errors(ours, theirs, ours.preprocess([{"image": image} for image in images]).tensor)) < 1e-5


def test_layer_scale_and_projections_of_the_decoder():
    _, ours, theirs = make_pair(opts=["MODEL.DINAT.LAYER_SCALE", "0.1", "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", "True"])
    image = torch.from_numpy(deterministic.image("scale", 64, 64)).float()
    assert max(errors(ours, theirs, ours.preprocess([{"image": image}]).tensor)) < 1e-5


def test_queries_with_an_empty_mask_attend_everywhere():
    """Masks that depend on the query alone: each is full or empty, and an empty one blocks all keys."""
    _, ours, theirs = make_pair()
    with torch.no_grad():
        decoder = ours.sem_seg_head.pixel_decoder
        decoder.mask_features.weight.zero_()
        image = torch.from_numpy(deterministic.image("empty", 64, 64)).float()
        pixels = ours.preprocess([{"image": image}]).tensor
        masks = ours.sem_seg_head(ours.backbone(pixels))["aux_outputs"][0]["pred_masks"]
    full = (masks > 0).flatten(2).all(2)
    assert full.any() and not full.all() and (masks < 0).flatten(2).all(2).any()
    theirs.load_state_dict(to_transformers(ours.state_dict()))
    # The range of these outputs is small: 2e-5 was measured.
    assert max(errors(ours, theirs, pixels)) < 1e-4


def uniform(*shape, device=None):
    """Random numbers that depend on the shape alone, for both implementations to draw the same points."""
    seed = sum(number * 101**place for place, number in enumerate(shape)) % 2**31
    return torch.empty(*shape, device=device).uniform_(generator=torch.Generator().manual_seed(seed))


def make_targets(counts, stream):
    targets = []
    for count in counts:
        masks = torch.zeros(count, 64, 96, dtype=torch.bool)
        for mask in masks:
            top, left, height, width = (
                int(stream.randint(low, high)) for low, high in ((0, 50), (0, 80), (4, 30), (4, 30))
            )
            mask[top : top + height, left : left + width] = True
        targets.append((torch.from_numpy(stream.randint(0, 133, count)), masks))
    return targets


@pytest.mark.parametrize("counts", [(3, 5), (4, 0), (12, 2), (0, 0)], ids=str)
def test_losses_and_gradients_at_the_same_points(pair, monkeypatch, counts):
    """Also without any target, in one image or in all, and with more targets than queries."""
    _, ours, theirs = pair
    monkeypatch.setattr(torch, "rand", uniform)
    images = torch.stack([torch.from_numpy(deterministic.image(f"loss{i}", 64, 96)) for i in range(2)]).float()
    pixels = (images - ours.pixel_mean) / ours.pixel_std
    classes, masks = zip(*make_targets(counts, np.random.RandomState(0)), strict=True)
    ours.zero_grad()
    theirs.zero_grad()
    losses = ours.criterion(ours.sem_seg_head(ours.backbone(pixels)), classes, masks)
    sum(losses.values()).backward()
    other = theirs(
        pixels, mask_labels=[mask.float() for mask in masks], class_labels=classes, output_auxiliary_logits=True
    )
    other.loss.backward()
    terms = theirs.get_loss_dict(
        other.masks_queries_logits,
        other.class_queries_logits,
        [mask.float() for mask in masks],
        classes,
        other.auxiliary_logits,
    )
    assert {name.replace("_ce", "_cross_entropy") for name in losses} == terms.keys()
    for name, loss in losses.items():
        # Rounding alone: 2e-6 was measured, of sums up to 100.
        assert loss.item() == pytest.approx(terms[name.replace("_ce", "_cross_entropy")].item(), abs=2e-5)
    gradients = to_transformers({name: _gradient(x) for name, x in ours.named_parameters()})
    largest = max(float(x.abs().max()) for x in gradients.values())
    for name, parameter in theirs.named_parameters():
        assert float((gradients[name] - _gradient(parameter)).abs().max()) < 1e-4 * largest, name


def _gradient(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.fixture(scope="module")
def outputs():
    """Logits of 12 queries with clear classes and round masks of several sizes, for 7 classes of which 4 are things."""
    stream = np.random.RandomState(3)
    logits = torch.from_numpy(4 * stream.randn(12, 8)).float()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32), indexing="ij")
    shapes = stream.uniform(-0.8, 0.8, (12, 2)), stream.uniform(0.2, 0.9, 12)
    masks = torch.stack(
        [8 * (radius - torch.hypot(x - cx, y - cy)) for (cx, cy), radius in zip(shapes[0], shapes[1], strict=True)]
    ).float()
    # transformers resizes all masks to 384 x 384 before it makes results; ours are compared at that size.
    resized = F.interpolate(masks[None], size=(384, 384), mode="bilinear", align_corners=False)[0]
    theirs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    return Queries(logits, resized, (384, 384), (384, 384)), theirs


SETTINGS_OF_RESULTS = InferenceSettings(
    object_mask_threshold=0.5,
    overlap_threshold=0.6,
    detections_per_image=12,
    thing_ids=frozenset(range(4)),
    semantic_scores=False,
)


def results(queries, task):
    return inference.run(queries, (384, 384), replace(SETTINGS_OF_RESULTS, tasks=(task,)))


def test_semantic_results_are_equal(outputs):
    queries, theirs = outputs
    (classes,) = transformers.Mask2FormerImageProcessor().post_process_semantic_segmentation(theirs)
    assert classes.equal(results(queries, "semantic")["sem_seg"])


def test_instances_are_equal(outputs):
    queries, theirs = outputs
    (found,) = transformers.Mask2FormerImageProcessor().post_process_instance_segmentation(
        theirs, threshold=0.0, return_binary_maps=True
    )
    instances = results(queries, "instance")["instances"]
    # Theirs are not restricted to things, and only those with a pixel are listed.
    info = [segment for segment in found["segments_info"] if segment["label_id"] in SETTINGS_OF_RESULTS.thing_ids]
    info.sort(key=lambda segment: -segment["score"])
    seen = instances.pred_masks.flatten(1).any(1)
    assert [segment["label_id"] for segment in info] == instances.pred_classes[seen].tolist()
    assert [segment["score"] for segment in info] == pytest.approx(instances.scores[seen].tolist(), abs=1e-5)
    masks = found["segmentation"][[segment["id"] for segment in info]].bool()
    assert masks.equal(instances.pred_masks[seen])


def test_panoptic_segments_of_transformers_are_larger(outputs):
    """Theirs paint all pixels that a query wins, ours (as the authors) only those inside its mask.

    They also compare what a query wins with the part of its mask where score times probability reaches 0.5.
    """
    queries, theirs = outputs
    (found,) = transformers.Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        theirs, threshold=0.5, overlap_mask_area_threshold=0.6, label_ids_to_fuse={4, 5, 6}
    )
    segments, info = results(queries, "panoptic")["panoptic_seg"]
    ours = torch.full(segments.shape, -1)
    for segment in info:
        ours[segments == segment["id"]] = segment["category_id"]
    other = torch.full(segments.shape, -1)
    for segment in found["segments_info"]:
        other[found["segmentation"] == segment["id"]] = segment["label_id"]
    painted = ours >= 0
    assert painted.any() and (ours == other)[painted].all()
    assert (other[~painted] >= 0).any(), "if this fails, transformers was corrected: say so in the documentation"


def test_pixels_for_transformers(pair):
    """Their preparation of an image: our resize with their `backend="pil"`, up to 1 level of 255 with torchvision."""
    cfg, ours, _ = pair
    image = deterministic.image("pixels", 96, 120).transpose(1, 2, 0)
    resized = build_test_resize(cfg).get_transform(image).apply_image(image)
    assert resized.shape == (64, 80, 3)
    expected = ours.preprocess([{"image": torch.from_numpy(resized.copy()).permute(2, 0, 1)}]).tensor
    processor = build_image_processor(cfg)
    exact = transformers.Mask2FormerImageProcessorPil(**processor.to_dict())
    pad_size = SizeDict(height=64, width=96)
    for kind, levels in ((processor, 1), (exact, 0)):
        pixels = kind(image, return_tensors="pt", size_divisor=0, pad_size=pad_size)["pixel_values"]
        assert float((pixels - expected).abs().max()) < (levels + 0.001) / 57.12, kind
    # As configured, they are stretched instead.
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == expected.shape and not pixels[..., 80:].eq(0).any()


def test_widths_may_differ_by_a_pixel(pair):
    """transformers rounds the longer side down, Detectron2 to the nearest number."""
    cfg, _, _ = pair
    image = deterministic.image("width", 90, 122).transpose(1, 2, 0)
    assert build_test_resize(cfg).get_transform(image).apply_image(image).shape == (64, 87, 3)
    assert build_image_processor(cfg)(image, size_divisor=0)["pixel_values"][0].shape == (3, 64, 86)


@pytest.mark.parametrize(
    ("setting", "first", "last", "fused"),
    [
        ("coco-panoptic", "person", "rug-merged", 53),
        ("coco-instance", "person", "toothbrush", 0),
        ("ade20k-instance", "bed", "flag", 0),
        ("cityscapes-panoptic", "road", "bicycle", 11),
    ],
)
def test_classes_and_sizes_of_a_setting(setting, first, last, fused):
    cfg = setup_cfg(config_path(setting))
    config, processor = build_config(cfg), build_image_processor(cfg)
    assert (config.id2label[0], config.id2label[config.num_labels - 1]) == (first, last)
    assert config.num_labels == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == len(config.label2id) == processor.num_labels
    assert len(config.label_ids_to_fuse) == fused
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
    )
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.SEM_SEG_HEAD.NORM", ""],
        ["MODEL.DINAT.KERNEL_SIZES", "[7,7,5,3]"],
        ["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "4"],
        ["INPUT.FORMAT", "BGR"],
    ],
    ids=lambda opts: opts[0],
)
def test_what_transformers_has_not_is_named(opts):
    with pytest.raises(ExportError, match=rf"{opts[0]} is .*; Mask2Former of the transformers library has only"):
        build_config(setup_cfg(config_path("coco-panoptic"), opts))


def test_class_weights_of_the_loss_follow_from_the_config(pair):
    cfg, ours, _ = pair
    state = ours.state_dict()
    weights = state.pop("criterion.empty_weight")
    assert with_class_weights(state, cfg)["criterion.empty_weight"].equal(weights)
