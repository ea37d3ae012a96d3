"""An image classifier as ONNX: its logits, the crop that it sees, and the command that classifies with it."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from mask2former import Predictor, setup_cfg
from mask2former.data.classification import EvaluationTransform
from mask2former.data.datasets import predicted_metadata
from mask2former.export import ExportError, describe, export_form, export_network, save_onnx, verification
from mask2former.export.exported_model import OnnxModel, numpy_program
from mask2former.export.numpy_postprocessing import crop_of, top_classes
from mask2former.export.verification import ClassComparison, verify

from ..conftest import ROOT, load_script

CONFIG = ROOT / "configs" / "shapes" / "classification" / "dinat_pico.yaml"
OPTS = (
    "MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 8 MODEL.DINAT.DEPTHS [1,1,1,1] MODEL.DINAT.NUM_HEADS [1,1,2,2] "
    "MODEL.DINAT.DILATIONS [[2],[1],[1],[1]] MODEL.DINAT.KERNEL_SIZES [] MODEL.DINAT.KERNEL_SIZE 3 "
    "INPUT.CLASSIFICATION.SIZE 32 INPUT.CLASSIFICATION.CROP_PCT 0.8 MODEL.DINAT.ATTENTION_BACKEND exportable"
).split()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, deterministic):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    deterministic.save(deterministic.load_weights(build_model(setup_cfg(CONFIG, OPTS))), path)
    return path


@pytest.fixture(scope="module")
def cfg(weights):
    return setup_cfg(CONFIG, [*OPTS, "MODEL.WEIGHTS", str(weights)])


@pytest.fixture(scope="module")
def predictor(cfg):
    return Predictor.from_cfg(cfg)


@pytest.fixture(scope="module")
def onnx_file(cfg, predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    description = describe(cfg, predictor.model, predicted_metadata(cfg), "batch")
    save_onnx(export_network(predictor.model, (32, 32), "batch"), path, description)
    return path


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 32), (32, 33), (7, 500), (333, 100), (41, 41)])
@pytest.mark.parametrize(("side", "crop_pct"), [(32, 0.8), (32, 0.875), (33, 1.0), (31, 0.9)])
def test_the_crop_without_torch_is_that_of_evaluation(size, side, crop_pct):
    transform = EvaluationTransform(side, crop_pct)
    image = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    crop = crop_of(size, transform.shorter_side, side)
    resized = np.asarray(Image.fromarray(image).resize(crop.resized[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized[crop.rows, crop.columns], transform(image))


def test_probabilities_without_torch():
    logits = np.array([1.0, 3.0, 3.0, -200.0], np.float32)
    expected = torch.tensor(logits).softmax(0).numpy()
    assert top_classes(logits, 3) == [(i, pytest.approx(expected[i], rel=1e-6)) for i in (1, 2, 0)]


@pytest.mark.slow  # PyTorch's exporter takes 20 s
def test_onnxruntime_gives_the_logits_of_the_model(onnx_file, predictor):
    opened = OnnxModel(onnx_file, threads=1)
    images = np.random.RandomState(0).randint(0, 256, (3, 3, 32, 32)).astype(np.uint8)
    (logits,) = opened(images.astype(np.float32))
    expected = predictor.model.predict([{"image": torch.from_numpy(image)} for image in images])
    np.testing.assert_allclose(logits, torch.stack([output.logits for output in expected]), rtol=0, atol=1e-4)
    assert logits.shape == (3, 10) and np.ptp(logits) > 1 and opened.fixed_size == (32, 32)
    about = opened.description
    assert (about["tasks"], about["shorter_side"], about["crop"]) == (["classification"], 40, 32)
    assert [entry["name"] for entry in about["classes"]] == list(predictor.classes().names)


@pytest.mark.slow
def test_onnx_infer_finds_what_the_predictor_finds(onnx_file, predictor, tmp_path, capsys):
    photo, script = tmp_path / "photo.png", load_script("tools/onnx_infer.py")
    Image.fromarray(np.random.RandomState(1).randint(0, 256, (50, 70, 3)).astype(np.uint8)).save(photo)
    assert script.main([str(onnx_file), str(photo), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "photo_classification.json").read_text())
    expected = predictor(photo).to_json(photo)
    assert [c["category_name"] for c in found["classes"]] == [c["category_name"] for c in expected["classes"]]
    assert [c["probability"] for c in found["classes"]] == pytest.approx(
        [c["probability"] for c in expected["classes"]], abs=1e-5
    )
    assert {**found, "classes": 0} == {**expected, "classes": 0}
    best = expected["classes"][0]
    assert f"photo.png: {best['category_name']} {100 * best['probability']:.1f}%" in capsys.readouterr().out
    for options in (["--confidence-threshold", "0.5"], ["--task", "panoptic"]):
        with pytest.raises(SystemExit, match="2"):
            script.main([str(onnx_file), str(photo), "--output", str(tmp_path / "out"), *options])


def test_a_program_of_torch_export_gives_the_logits_of_the_model(predictor):
    image = np.random.RandomState(0).randint(0, 256, (3, 32, 32)).astype(np.uint8)
    (logits,) = numpy_program(export_network(predictor.model, (32, 32)).module())(image[None].astype(np.float32))
    expected = predictor.model.predict([{"image": torch.from_numpy(image)}])[0].logits
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (0.1, False)])
def test_verification_compares_logits(shift, passes, monkeypatch, cfg, predictor):
    logits = np.arange(10, dtype=np.float32)[None]
    outputs = {"a.logits": logits, "seconds": np.array(1.0), "peak_bytes": np.array(1)}

    def run(command, folder):
        return outputs | ({} if command[0] == "-m" else {"a.logits": logits + np.float32(shift)})

    monkeypatch.setattr(verification, "measure_in_process", run)
    description = describe(cfg, predictor.model, predicted_metadata(cfg), "none")
    images = {"a": np.zeros((50, 40, 3), np.uint8)}
    ((comparison,), _) = verify(CONFIG, predictor.model, cfg, description, images, (32, 32))
    assert isinstance(comparison, ClassComparison) and comparison.passes == passes
    assert comparison.cells()[""] == ("ok" if passes else "FAILED")
    assert not ClassComparison("a", 0.0, 1, 2).passes


def test_what_cannot_be_exported_is_one_line(predictor):
    with pytest.raises(ExportError, match="--free size: image classifiers see images of one size"):
        export_network(predictor.model, (32, 32), "size")
    with pytest.raises(ExportError, match="Linear: such models can't be exported"):
        export_form(nn.Linear(1, 1))
