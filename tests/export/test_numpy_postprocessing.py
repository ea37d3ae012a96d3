"""Post-processing in NumPy gives the same results as the model's own."""

import ast
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeShortestEdge

from mask2former.export import numpy_postprocessing as portable
from mask2former.modeling.inference import InferenceSettings, Queries, make_results, run

from ..conftest import ROOT

QUERIES, CLASSES, THINGS = 12, 5, frozenset({0, 2})
# Mask, padded input, image in it, result: enlarged, reduced, the same size throughout.
SIZES = [
    ((16, 24), (64, 96), (50, 90), (75, 135)),
    ((16, 24), (64, 96), (64, 96), (33, 41)),
    ((20, 12), (20, 12), (20, 12), (20, 12)),
    ((16, 16), (64, 64), (64, 33), (200, 97)),
]


@pytest.fixture(params=range(len(SIZES)), ids=lambda i: "x".join(map(str, SIZES[i][3])))
def example(request, deterministic):
    """Class logits, smooth mask logits with a few clear winners, and sizes."""
    mask_size, *sizes = SIZES[request.param]
    logits = 3 * deterministic.draw(f"logits {request.param}", (QUERIES, CLASSES + 1))
    coarse = torch.from_numpy(6 * deterministic.draw(f"masks {request.param}", (1, QUERIES, 4, 5)))
    masks = F.interpolate(coarse, size=mask_size, mode="bilinear")[0].numpy()
    return logits, masks, sizes


def both_masks(masks, sizes):
    queries = Queries(torch.zeros(0), torch.from_numpy(masks), sizes[0], sizes[1])
    return portable.NumpyMasks(masks, portable.ImageSizes(*sizes)), queries.resized(sizes[2])


def test_masks_are_resized_as_by_pytorch(example):
    _, masks, sizes = example
    padded, image, result = sizes
    ours = portable.NumpyMasks(masks, portable.ImageSizes(*sizes))
    enlarged = F.interpolate(torch.from_numpy(masks)[None], size=padded, mode="bilinear", align_corners=False)
    cut = enlarged[:, :, : image[0], : image[1]]
    expected = F.interpolate(cut, size=result, mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose([ours.whole(query) for query in range(QUERIES)], expected, rtol=0, atol=2e-5)
    strips = list(ours.strips(values_at_once=9000))
    assert len(strips) > 1 or sizes[2] == (20, 12)
    np.testing.assert_allclose(np.concatenate([maps for _, maps in strips], axis=1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.99999])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.4])
def test_panoptic(example, threshold, overlap):
    logits, masks, sizes = example
    ours, theirs = both_masks(masks, sizes)
    ids, segments = portable.panoptic(logits, ours, THINGS, threshold, overlap)
    settings = InferenceSettings(("panoptic",), threshold, overlap, thing_ids=THINGS)
    expected, expected_segments = make_results(torch.from_numpy(logits), theirs, settings)["panoptic_seg"]
    np.testing.assert_array_equal(ids, expected.numpy())
    scores, expected_scores = ([segment.pop("score") for segment in s] for s in (segments, expected_segments))
    assert segments == expected_segments
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    assert (threshold < 0.9) == bool(segments) and ids.dtype == np.int32


@pytest.mark.parametrize("classes", [None, THINGS])
def test_instances(example, classes):
    logits, masks, sizes = example
    ours, theirs = both_masks(masks, sizes)
    found, categories, scores = portable.instances(logits, ours, 20, classes)
    settings = InferenceSettings(("instance",), detections_per_image=20, thing_ids=classes)
    expected = make_results(torch.from_numpy(logits), theirs, settings)["instances"]
    np.testing.assert_array_equal(found, expected.pred_masks.numpy())
    np.testing.assert_array_equal(categories, expected.pred_classes.numpy())
    np.testing.assert_allclose(scores, expected.scores.numpy(), rtol=1e-5)
    assert len(scores) > 3 and (np.diff(scores) <= 0).all()


def test_semantic_with_masks_resized_first(example):
    logits, masks, sizes = example
    ours, theirs = both_masks(masks, sizes)
    expected = make_results(torch.from_numpy(logits), theirs, InferenceSettings(semantic_scores=False))["sem_seg"]
    np.testing.assert_array_equal(portable.semantic(logits, ours), expected)


def test_semantic_with_scores_resized_last(example):
    logits, masks, sizes = example
    padded, image, result = sizes
    queries = Queries(torch.from_numpy(logits), torch.from_numpy(masks), padded, image)
    expected = run(queries, result, InferenceSettings(semantic_scores=False))["sem_seg"]
    ours = portable.NumpyMasks(masks, portable.ImageSizes(*sizes))
    np.testing.assert_array_equal(portable.semantic(logits, ours, resize_masks_first=False), expected)


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 427), (100, 900), (333, 333), (1, 7)])
@pytest.mark.parametrize(("shortest", "longest"), [(800, 1333), (640, 2560), (64, 128)])
def test_images_are_resized_as_detectron2_does(size, shortest, longest):
    padded, resized, result = portable.image_sizes(size, shortest, longest, 32)
    assert result == size and resized == ResizeShortestEdge.get_output_shape(*size, shortest, longest)
    assert all(p % 32 == 0 and 0 <= p - r < 32 for r, p in zip(resized, padded, strict=True))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (30, 30), (1, 5000)])
def test_images_are_fitted_into_a_fixed_size(size):
    padded, resized, _ = portable.image_sizes(size, 800, 1333, 32, (64, 96))
    assert padded == (64, 96) and all(0 < r <= p for r, p in zip(resized, padded, strict=True))
    assert any(r == p for r, p in zip(resized, padded, strict=True))


def test_padding_is_what_normalisation_makes_zero():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mean = [123.675, 116.28, 103.53]
    image = portable.network_input(pixels, (3, 5), "BGR", mean)
    assert image.shape == (1, 3, 3, 5) and image.dtype == np.float32
    np.testing.assert_array_equal(image[0, :, :2, :4], pixels[:, :, ::-1].transpose(2, 0, 1))
    normalised = torch.from_numpy(image) - torch.tensor(mean).view(-1, 1, 1)
    assert (normalised[0, :, 2] == 0).all() and (normalised[0, :, :, 4] == 0).all()


@pytest.mark.parametrize("name", ["numpy_postprocessing", "exported_model"])
def test_files_for_programs_without_pytorch_import_nothing_else_at_first(name, tmp_path):
    path = ROOT / "mask2former" / "export" / f"{name}.py"
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module for node in statements for alias in node.names
    }
    assert {str(module).split(".")[0] for module in imported} - sys.stdlib_module_names == {"numpy"}
    (tmp_path / f"{name}.py").write_text(path.read_text())
    code = f"import sys, {name}; assert not {{'torch', 'detectron2', 'mask2former'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
