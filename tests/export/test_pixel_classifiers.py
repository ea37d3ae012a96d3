"""UPerNet as ONNX: pooling at any size, OpenCV's pixels without OpenCV, and the class maps of the usual commands."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from mask2former import Predictor, setup_cfg
from mask2former.data.datasets import predicted_metadata
from mask2former.data.resizing import size_inside
from mask2former.export import ExportError, check_exportable, describe, export_network, save_onnx, verification
from mask2former.export.exported_model import OnnxModel, numpy_program
from mask2former.export.network import ExportedPixelClassifier, smallest_side
from mask2former.export.numpy_postprocessing import (
    ImageSizes,
    NumpyMasks,
    image_sizes,
    pixel_classes,
    prepare,
    resize_with_opencv,
)
from mask2former.export.verification import PixelComparison, compare_pixels, verify
from mask2former.modeling.inference import InferenceSettings, PixelScores
from mask2former.modeling.sem_seg_heads.upernet import BinAverages

from ..conftest import ROOT, load_script

CONFIG = ROOT / "configs/shapes/semantic-segmentation/dinat/upernet_dinat_pico_shapes.yaml"
# One head: its map is contiguous before it is cropped.
OPTS = (
    "MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 16 MODEL.DINAT.DEPTHS [1,1,1,1] MODEL.DINAT.NUM_HEADS [1,1,2,1] "
    "MODEL.DINAT.DILATIONS [[2],[1],[1],[1]] MODEL.DINAT.KERNEL_SIZES [] MODEL.DINAT.KERNEL_SIZE 3 "
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 16 INPUT.MIN_SIZE_TEST 48 INPUT.MAX_SIZE_TEST 150"
).split()
EXPORTABLE = ["MODEL.DINAT.ATTENTION_BACKEND", "exportable"]


def picture(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, deterministic):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = deterministic.load_weights(build_model(setup_cfg(CONFIG, OPTS)))
    with torch.no_grad():
        model.sem_seg_head.conv_seg.weight.mul_(6)
    deterministic.save(model, path)
    return path


@pytest.fixture(scope="module")
def cfg(weights):
    return setup_cfg(CONFIG, [*OPTS, *EXPORTABLE, "MODEL.WEIGHTS", str(weights)])


@pytest.fixture(scope="module")
def predictor(cfg):
    return Predictor.from_cfg(cfg)


@pytest.fixture(scope="module")
def description(cfg, predictor):
    return json.loads(json.dumps(describe(cfg, predictor.model, predicted_metadata(cfg), "size")))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_maps_of_unknown_size_are_pooled_as_usual(bins):
    """Bins that do not divide the map, and more bins than cells."""
    sides = {2: Dim("rows", min=2, max=64), 3: Dim("columns", min=2, max=64)}
    program = torch.export.export(BinAverages(bins), (torch.rand(1, 3, 5, 7),), dynamic_shapes={"x": sides}).module()
    for size in ((2, 3), (4, 5), (6, 13), (5, 64), (17, 2)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(program(x), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=1e-6)


def test_opencvs_pixels_without_opencv():
    """Any ratio, the same size on one axis, exactly half, and single rows and columns."""
    random = np.random.RandomState(0)
    sizes = [tuple(random.randint(1, 90, 4)) for _ in range(60)]
    sizes += [(2 * h, 2 * w, h, w) for h, w in ((7, 9), (1, 1), (30, 41))]
    sizes += [(20, 30, 20, 17), (20, 30, 11, 30), (20, 30, 40, 15), (1, 80, 1, 40), (33, 1, 50, 1), (8, 8, 8, 8)]
    for height, width, rows, columns in sizes:
        image = picture(height, width)
        expected = cv2.resize(image, (int(columns), int(rows)), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_with_opencv(image, (rows, columns)), expected)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (2, 3000), (1111, 333), (512, 2048), (513, 2047)])
def test_the_rule_of_sizes_is_that_of_the_published_resizing(size):
    found = image_sizes(size, 512, 2048, 1, resize_with="opencv", smallest=33)
    assert found.image == size_inside(size, 512, 2048)
    assert found.padded == tuple(max(33, side) for side in found.image) and found.result == size


def test_classes_without_torch_are_those_of_the_model():
    logits = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = PixelScores(logits, (33, 27)).results((50, 41), InferenceSettings(semantic_scores=False))["sem_seg"]
    found = pixel_classes(NumpyMasks(logits.numpy(), ImageSizes((33, 27), (33, 27), (50, 41))))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == 5


class EagerFile:
    """Stands for an opened ONNX file: the description, and the exported module run by PyTorch."""

    def __init__(self, model, description, fixed_size=None):
        self.description, self.fixed_size = description, fixed_size
        self.run = numpy_program(ExportedPixelClassifier(model))

    def __call__(self, image):
        return self.run(image)


@pytest.mark.parametrize("size", [(60, 80), (97, 50), (48, 48), (40, 120)])
def test_onnx_infer_prepares_and_reads_as_the_predictor(size, predictor, description):
    image, script = picture(*size), load_script("tools/onnx_infer.py")
    ids, found = script.predict(EagerFile(predictor.model, description), image, "semantic", None)
    expected = predictor(image)
    np.testing.assert_array_equal(ids, expected.labels + 1)
    assert [entry["category_id"] for entry in found] == [entry["category_id"] for entry in expected.segments()]
    assert len(found) > 2


def test_a_file_of_one_size_pads_images_of_another_ratio(predictor, description):
    script = load_script("tools/onnx_infer.py")
    image = picture(40, 50)
    ids, _ = script.predict(EagerFile(predictor.model, description, (48, 96)), image, "semantic", None)
    network_input, sizes = prepare(image, description, (48, 96))
    assert (sizes.padded, sizes.image, ids.shape) == ((48, 96), (48, 60), (40, 50))
    np.testing.assert_allclose(network_input[0, :, 0, 60:], np.tile(description["pixel_mean"], (36, 1)).T, rtol=1e-6)


def test_what_training_alone_needs_is_not_exported(predictor):
    parts = {name.split(".")[0] for name in ExportedPixelClassifier(predictor.model).state_dict()}
    assert parts == {"backbone", "sem_seg_head"} and predictor.model.auxiliary_head is not None


def test_what_the_file_says(predictor, description):
    assert description["kind"] == "pixels" and description["tasks"] == ["semantic"]
    assert description["resize_with"] == "opencv" and description["divisibility"] == 1
    assert description["smallest_side"] == smallest_side(1) == 33 and smallest_side(32) == 64
    assert [entry["name"] for entry in description["classes"]] == list(predictor.classes().names)
    assert description["outputs"] == ["logits"]


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (0.2, False)])
def test_verification_compares_logits_and_classes(shift, passes, monkeypatch, cfg, predictor, description):
    logits = np.random.RandomState(0).randn(1, 7, 12, 16).astype(np.float32)
    outputs = {"a.logits": logits, "seconds": np.array(1.0), "peak_bytes": np.array(1)}

    def run(command, folder):
        other = logits + np.float32(shift) * (np.arange(7) == 3)[:, None, None].astype(np.float32)
        return outputs | ({} if command[0] == "-m" else {"a.logits": other})

    monkeypatch.setattr(verification, "measure_in_process", run)
    ((comparison,), _) = verify(CONFIG, predictor.model, cfg, description, {"a": picture(48, 64)}, (48, 64))
    assert isinstance(comparison, PixelComparison) and comparison.passes == passes
    assert comparison.cells()[""] == ("ok" if passes else "FAILED")
    assert (comparison.differing > 10) != passes


def test_pixels_that_rounding_decides_are_counted_apart():
    """At the first pixel two classes are equally likely, at the second they are not."""
    expected = np.array([[[1.0, 3.0]], [[1.0, 1.0]]], np.float32)
    got = expected + np.array([[[0.0, -3.0]], [[1e-5, 0.0]]], np.float32)
    sizes = ImageSizes((1, 2), (1, 2), (1, 2))
    found = compare_pixels("a", got, expected, sizes)
    assert (found.differing, found.undecided, found.pixels) == (1, 1, 2)
    assert not found.passes and PixelComparison("a", 0.0, 0, 9, 10).passes


DETECTOR = ROOT / "configs/coco/detection/dinat/maskrcnn_dinat_mini.yaml"


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (DETECTOR, [], "META_ARCHITECTURE is MaskRCNN: detectors can't be exported, because .*; use demo/demo.py or"),
        (DETECTOR.with_name("cascadedmaskrcnn_dinat_mini.yaml"), [], "detectors can't be exported"),
        (CONFIG, ["MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE", "[64, 64]"], r"WINDOW_SIZE is \[64, 64\].*--free size"),
        (CONFIG, ["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED is True, but an exported file sees an image once"),
    ],
)
def test_what_can_not_be_exported_is_one_line(config, opts, message, tmp_path, capsys):
    with pytest.raises(ExportError, match=message) as error:
        check_exportable(setup_cfg(config, opts))
    assert "\n" not in str(error.value)
    words = ["--config-file", str(config), "--format", "onnx", "--output", str(tmp_path / "x.onnx"), *opts]
    with pytest.raises(SystemExit, match="1"):
        load_script("tools/export.py").main(words)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(error.value) in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_detector_is_refused_from_python_too():
    detector = type("MaskRCNN", (nn.Module,), {})()
    with pytest.raises(ExportError, match="MaskRCNN: detectors can't be exported"):
        export_network(detector, (64, 64))


@pytest.mark.slow  # PyTorch's exporter takes a minute
def test_one_onnx_file_serves_images_of_any_size(cfg, predictor, tmp_path, capsys):
    path = tmp_path / "tiny.onnx"
    about = describe(cfg, predictor.model, predicted_metadata(cfg), "size")
    program = export_network(predictor.model, (48, 64), "size")
    save_onnx(program, path, about)
    opened, traced = OnnxModel(path, threads=1), numpy_program(program.module())
    usual = numpy_program(ExportedPixelClassifier(predictor.model))
    assert opened.fixed_size is None and opened.description == json.loads(json.dumps(about))
    for size in ((33, 33), (64, 64), (48, 131), (150, 40), (97, 203)):
        image = picture(*size).transpose(2, 0, 1)[None].astype(np.float32)
        ((expected,),) = (usual(image),)
        assert np.ptp(expected) > 3
        for (logits,) in (opened(image), traced(image)):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    photo = tmp_path / "photo.png"
    for height, width in ((50, 70), (131, 50)):
        Image.fromarray(picture(height, width)).save(photo)
        assert load_script("tools/onnx_infer.py").main([str(path), str(photo), "--output", str(tmp_path / "out")]) == 0
        ids = np.array(Image.open(tmp_path / "out" / "photo_semantic_ids.png"))
        assert np.mean(ids != predictor(photo).labels + 1) <= 1e-4


@pytest.mark.slow  # PyTorch's exporter takes 20 s
def test_the_command_exports_and_verifies(weights, tmp_path, capsys):
    words = ["--config-file", str(CONFIG), "--format", "torch-export", "--output", str(tmp_path / "tiny.pt2")]
    assert load_script("tools/export.py").main([*words, *OPTS, "MODEL.WEIGHTS", str(weights)]) == 0
    out = capsys.readouterr().out
    assert "verified" in out and out.count("| equal ") == 3, out
