"""A tiny model as ONNX and as a program of torch.export: the same outputs and results, without our packages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from mask2former import Predictor, setup_cfg
from mask2former.data.datasets import predicted_metadata
from mask2former.export import describe, export_network, save_onnx, save_torch_export, verification
from mask2former.export.exported_model import ModelFileError, OnnxModel
from mask2former.export.network import ExportedNetwork
from mask2former.export.numpy_postprocessing import ImageSizes
from mask2former.export.verification import ImageComparison, count_differences, count_undecided, verify

from ..conftest import ROOT, config_path, load_script
from ..tiny import TINY

SIZE = (64, 96)
EXPORTABLE = (
    "MODEL.DINAT.ATTENTION_BACKEND exportable MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND reference"
).split()
# A dilation, and thresholds that keep some segments of random weights.
OPTS = [*TINY, "MODEL.DINAT.DILATIONS", "[[3],[2],[1],[1]]", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.05"]
# Rounding differences of sums in another order, for logits with a range of about 10.
TOLERANCE = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, deterministic):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = deterministic.load_weights(build_model(setup_cfg(config_path("coco-panoptic"), OPTS)))
    deterministic.save(model, path)
    return path


@pytest.fixture(scope="module")
def cfg(weights):
    return setup_cfg(config_path("coco-panoptic"), [*OPTS, "MODEL.WEIGHTS", str(weights)])


@pytest.fixture(scope="module")
def model(cfg, deterministic):
    exportable = cfg.clone()
    exportable.merge_from_list(EXPORTABLE)
    return deterministic.load_weights(build_model(exportable)).eval()


@pytest.fixture(scope="module")
def description(cfg, model):
    return describe(cfg, model, predicted_metadata(cfg), "batch")


@pytest.fixture(scope="module")
def program(model):
    return export_network(model, SIZE, "batch")


@pytest.fixture(scope="module")
def onnx_file(program, description, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    save_onnx(program, path, description)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A drawn picture of the model's input size, so that nothing is resized."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    picture = load_script("tools/export.py").drawn_images((96, 96))["drawn 1"][: SIZE[0]]
    Image.fromarray(picture).save(path)
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_onnxruntime_gives_what_the_usual_model_gives(onnx_file, cfg, deterministic, batch):
    usual = ExportedNetwork(deterministic.load_weights(build_model(cfg)))
    images = np.stack([deterministic.image(f"export {i}", *SIZE) for i in range(batch)]).astype(np.float32)
    logits, masks = OnnxModel(onnx_file, threads=1)(images)
    with torch.no_grad():
        expected_logits, expected_masks = usual(torch.from_numpy(images))
    np.testing.assert_allclose(logits, expected_logits, **TOLERANCE)
    np.testing.assert_allclose(masks, expected_masks, **TOLERANCE)
    assert logits.shape == (batch, 8, 134) and masks.shape == (batch, 8, 16, 24)
    assert np.ptp(masks) > 5


def test_the_file_is_one_and_uses_standard_operators_alone(onnx_file):
    assert [path.name for path in onnx_file.parent.iterdir()] == [onnx_file.name]
    loaded = onnx.load(onnx_file)
    assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"} and not loaded.functions


def test_the_file_says_how_to_use_it(onnx_file, cfg):
    opened = OnnxModel(onnx_file)
    about = opened.description
    assert opened.fixed_size == SIZE
    assert about["tasks"] == ["panoptic", "instance", "semantic"] and about["image_format"] == "RGB"
    assert (about["min_size"], about["max_size"], about["divisibility"]) == (64, 128, 32)
    assert len(about["classes"]) == 133
    assert about["classes"][0] == {"name": "person", "color": [220, 20, 60], "isthing": True}
    assert [entry["isthing"] for entry in about["classes"]].count(True) == 80
    assert about["pixel_mean"] == cfg.MODEL.PIXEL_MEAN


@pytest.mark.parametrize(
    ("setting", "tasks", "names", "things"),
    [
        ("coco-instance", ["instance"], ("person", "toothbrush"), 80),
        ("ade20k-semantic", ["semantic"], ("wall", "flag"), 0),
        ("cityscapes-panoptic", ["panoptic", "instance", "semantic"], ("road", "bicycle"), 8),
    ],
)
def test_other_settings_are_described_too(setting, tasks, names, things):
    cfg = setup_cfg(config_path(setting), TINY)
    about = describe(cfg, build_model(cfg), predicted_metadata(cfg), "none")
    assert about["tasks"] == tasks and (about["classes"][0]["name"], about["classes"][-1]["name"]) == names
    assert sum(entry["isthing"] for entry in about["classes"]) == things
    assert about["resize_masks_first"] == (tasks != ["semantic"])


@pytest.mark.slow
def test_torch_export_is_run_without_our_packages(program, description, model, tmp_path, deterministic):
    save_torch_export(program, tmp_path / "tiny.pt2", description)
    with ZipFile(tmp_path / "tiny.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("description.json"))
        assert json.loads(archive.read(name)) == description
    image = np.stack([deterministic.image("export", *SIZE)] * 2).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    shutil.copy(ROOT / "mask2former" / "export" / "exported_model.py", tmp_path)
    code = (
        "import sys, numpy, exported_model\n"
        "logits, masks = exported_model.load_program('tiny.pt2', 1)(numpy.load('image.npy'))\n"
        "numpy.savez('outputs.npz', logits=logits, masks=masks)\n"
        "assert not {'mask2former', 'dinat_backbone', 'detectron2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = ExportedNetwork(model)(torch.from_numpy(image))
    outputs = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["logits"], expected[0], **TOLERANCE)
    np.testing.assert_allclose(outputs["masks"], expected[1], **TOLERANCE)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.01, False), (np.nan, False)])
def test_verification_fails_where_outputs_differ(monkeypatch, model, cfg, description, deterministic, factor, passes):
    outputs = {
        "a.logits": 3 * deterministic.draw("a.logits", (1, 8, 134)),
        "a.masks": deterministic.draw("a.masks", (1, 8, 16, 24)),
        "seconds": np.array(1.0),
        "peak_bytes": np.array(1),
    }

    def run(command, folder):
        return outputs | ({} if command[0] == "-m" else {"a.masks": outputs["a.masks"] * np.float32(factor)})

    monkeypatch.setattr(verification, "measure_in_process", run)
    images = {"a": np.zeros((64, 96, 3), dtype=np.uint8)}
    ((comparison,), _) = verify(Path(__file__), model, cfg, description, images, SIZE)
    assert comparison.passes == passes


@pytest.mark.parametrize(
    ("difference", "panoptic", "semantic", "passes"),
    [(9e-4, 0, 0, True), (1.1e-3, 0, 0, False), (0, 1, 0, False), (0, 0, 10, True), (0, 0, 11, False)],
)
def test_outputs_must_be_close_and_maps_equal(difference, panoptic, semantic, passes):
    results = {"panoptic": panoptic, "semantic": semantic}
    assert ImageComparison("a", difference, 0.0, results, undecided=50, pixels=100_000).passes == passes


def test_pixels_that_rounding_decides():
    """Three queries at four pixels: a clear winner, two equal ones, a mask probability of 1/2, none of these."""
    logits = np.log(np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], dtype=np.float32))
    masks = np.array([[5, 1, 1e-5, 0.3], [-5, 1, -5, -5], [9, 9, 9, 9]], dtype=np.float32)[:, None]
    about, sizes = {"object_mask_threshold": 0.8}, ImageSizes((1, 4), (1, 4), (1, 4))
    for pixel, undecided in enumerate((0, 1, 1, 0)):
        where = np.arange(4)[None] == pixel
        assert count_undecided(logits, masks, sizes, about, where) == undecided


def test_a_missing_segment_counts_as_a_difference_of_the_whole_map():
    expected = np.zeros((100, 200), dtype=np.int32)
    expected[0, 0] = 1
    found = count_differences({"panoptic": np.zeros_like(expected)}, {"panoptic": expected})
    assert found == {"panoptic": expected.size}


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_onnx_infer_finds_what_the_predictor_finds(onnx_file, photo, cfg, task, tmp_path, capsys):
    status = load_script("tools/onnx_infer.py").main(
        [str(onnx_file), str(photo), "--output", str(tmp_path), "--task", task]
    )
    assert status == 0 and "photo.png: " in capsys.readouterr().out
    expected = Predictor.from_cfg(cfg, task)(photo)
    ids = np.array(Image.open(tmp_path / f"photo_{task}_ids.png"))
    np.testing.assert_array_equal(ids, expected.ids if task == "panoptic" else expected.labels + 1)
    found = json.loads((tmp_path / f"photo_{task}.json").read_text())["segments_info"]
    assert [(s["category_id"], s["area"]) for s in found] == [
        (s["category_id"], s["area"]) for s in expected.segments()
    ]
    assert np.array(Image.open(tmp_path / f"photo_{task}.png")).shape == (*SIZE, 3)


def test_onnx_infer_refuses_an_output_folder_whose_files_are_inputs_of_the_next_run(onnx_file, photo, capsys):
    script, folder = load_script("tools/onnx_infer.py"), photo.parent
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit):
        script.main([str(onnx_file), str(folder), "--output", str(folder)])
    assert "would be an image of the next run" in capsys.readouterr().err and sorted(folder.iterdir()) == before


def test_onnx_infer_keeps_all_results_and_survives_bad_images(onnx_file, photo, tmp_path, monkeypatch, capsys):
    script, out = load_script("tools/onnx_infer.py"), tmp_path / "out"
    picture = Image.open(photo)
    for name in ("a/x.png", "b/x.png", "b/x.bmp", "b/X.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    picture.save(tmp_path / "a" / "fatal.png")
    predict = script.predict

    def fail_once(model, image, *options):
        monkeypatch.setattr(script, "predict", predict)
        raise KeyError("unexpected")

    monkeypatch.setattr(script, "predict", fail_once)
    inputs = [str(tmp_path / name) for name in ("a/fatal.png", "a/bad.png", "a/x.png", "b", "none.png")]
    assert script.main([str(onnx_file), *inputs, "--output", str(out)]) == 1
    skipped = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0].split("/")[-1] for line in skipped] == ["none.png", "fatal.png", "bad.png"]
    named = {json.loads(path.read_text())["file_name"] for path in out.glob("*.json")}
    assert named == {str(tmp_path / name) for name in ("a/x.png", "b/x.png", "b/x.bmp", "b/X.png")}
    assert len(list(out.iterdir())) == 3 * len(named)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1)])
def test_onnx_infer_takes_images_of_any_shape(onnx_file, tmp_path, shape):
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "line.png")
    words = [str(onnx_file), str(tmp_path / "line.png"), "--output", str(tmp_path), "--task", "semantic"]
    assert load_script("tools/onnx_infer.py").main(words) == 0
    assert np.array(Image.open(tmp_path / "line_semantic_ids.png")).shape == shape


def test_results_of_large_images_are_enlarged(onnx_file, photo, tmp_path, monkeypatch, cfg):
    script = load_script("tools/onnx_infer.py")
    monkeypatch.setattr(script, "MAX_PIXELS", 1000)
    model = script.exported_model.OnnxModel(onnx_file)
    ids, _ = script.predict(model, np.array(Image.open(photo)), "semantic", None)
    predictor = Predictor.from_cfg(cfg, "semantic")
    small = Predictor(
        predictor.model,
        predictor._metadata,
        "semantic",
        resize=predictor._resize,
        max_pixels=1000,
    )
    np.testing.assert_array_equal(ids, small(photo).labels + 1)


def test_onnx_infer_takes_the_range_of_the_training(onnx_file, description, photo, tmp_path, monkeypatch):
    """A floating-point image with a range is the same image."""
    script = load_script("tools/onnx_infer.py")
    pixels = np.array(Image.open(photo).convert("L"))
    Image.fromarray(pixels).save(tmp_path / "bytes.png")
    Image.fromarray(pixels.astype(np.float32) / 255).save(tmp_path / "floats.tif")
    words = [str(onnx_file), str(tmp_path / "bytes.png"), str(tmp_path / "floats.tif"), "--output", str(tmp_path)]
    assert script.main([*words, "--task", "semantic"]) == 1
    assert script.main([*words, "--task", "semantic", "--value-range", "0", "1"]) == 0
    both = [np.array(Image.open(tmp_path / f"{name}_semantic_ids.png")) for name in ("bytes", "floats")]
    np.testing.assert_array_equal(*both)
    assert description["value_range"] == []


def test_onnx_infer_runs_from_copied_files_without_pytorch(onnx_file, photo, tmp_path):
    for source in (
        "tools/onnx_infer.py",
        *(f"mask2former/export/{n}.py" for n in ("exported_model", "numpy_postprocessing")),
        *(f"mask2former/data/{n}.py" for n in ("photograph_files", "photographs")),
        "mask2former/utils/input_files.py",
    ):
        shutil.copy(ROOT / source, tmp_path)
    code = (
        "import sys\n"
        "for name in ('torch', 'detectron2', 'mask2former', 'dinat_backbone', 'cv2', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "import onnx_infer\n"
        "sys.exit(onnx_infer.main(sys.argv[1:]))\n"
    )
    arguments = [str(onnx_file), str(photo), "missing.jpg", "--output", "out", "--task", "instance"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--confidence-threshold", "0.01"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "skipped missing.jpg" in done.stderr, done.stderr
    found = json.loads((tmp_path / "out" / "photo_instance.json").read_text())["segments_info"]
    assert found and all(0.01 <= segment["score"] <= 1 for segment in found)


def test_other_files_are_refused(tmp_path):
    nothing = tmp_path / "nothing.onnx"
    with pytest.raises(ModelFileError, match="no such file"):
        OnnxModel(nothing)
    nothing.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="can't open it"):
        OnnxModel(nothing)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 8, 8]))
    opset = [onnx.helper.make_opsetid("", 20)]
    foreign = onnx.helper.make_model(graph, opset_imports=opset, ir_version=min(10, onnx.IR_VERSION))
    onnxruntime.InferenceSession(foreign.SerializeToString())
    onnx.save(foreign, nothing)
    with pytest.raises(ModelFileError, match=r"not written by tools/export\.py"):
        OnnxModel(nothing)


@pytest.fixture
def command(weights, tmp_path, monkeypatch):
    """Runs tools/export.py on the tiny model."""
    monkeypatch.chdir(tmp_path)
    script = load_script("tools/export.py")

    def run(*words):
        opts = [*OPTS, "MODEL.WEIGHTS", "" if "--no-weights" in words else str(weights)]
        words = [word for word in words if word != "--no-weights"]
        return script.main(["--config-file", str(config_path("coco-panoptic")), *words, *opts])

    run.script = script
    return run


def test_config_keys_may_follow_the_images(command):
    words = (
        "--config-file F --format onnx --output x.onnx --verify a.jpg B.PNG MODEL.WEIGHTS w.pth INPUT.MIN_SIZE_TEST 64"
    )
    options = command.script.parse_arguments(words.split())
    assert options.verify == [Path("a.jpg"), Path("B.PNG")]
    assert options.opts == ["MODEL.WEIGHTS", "w.pth", "INPUT.MIN_SIZE_TEST", "64"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--format onnx --output x.pt2", 2, "expected a name that ends in .onnx"),
        ("--format onnx --output x.onnx --size 64 100", 1, "64 x 100: expected multiples of 32"),
        ("--format onnx --output x.onnx --no-weights", 1, "MODEL.WEIGHTS is empty"),
        ("--format onnx --output x.onnx --verify no.jpg", 1, "no.jpg: no such file"),
    ],
)
def test_wrong_calls_get_a_message(command, words, status, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(*words.split())
    assert stopped.value.code == status and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_exports_and_verifies(command, program, onnx_file, description, tmp_path, monkeypatch, capsys):
    """Reuses the traced and translated program of the other tests, because making one takes a while."""

    def save(given, path, about):
        assert given is program and about == description
        shutil.copy(onnx_file, path)

    monkeypatch.setattr(command.script, "export_network", lambda *_: program)
    monkeypatch.setitem(command.script.SAVERS, "onnx", save)
    status = command(*f"--format onnx --free batch --output tiny.onnx --size {SIZE[0]} {SIZE[1]}".split())
    out = capsys.readouterr().out
    assert status == 0 and "verified" in out and out.count("| equal ") == 9, out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    memory = {
        row.split("|")[1].strip(): float(row.split("|")[4])
        for row in out.splitlines()
        if row.count("|") == 5 and "." in row
    }
    # A process without PyTorch is far smaller.
    assert 30 < memory["onnxruntime"] < memory["PyTorch"] / 2
