"""tools/convert_weights.py: files of mmdetection and mmsegmentation in both directions, equal to the bit."""

import numpy as np
import pytest
import torch

from mask2former import Predictor
from mask2former.checkpoint import Checkpointer, CheckpointMismatchError, read_checkpoint
from mask2former.model_zoo import MODELS
from tests.checkpoint.openmmlab import DENSE, published_shapes, small_state
from tests.conftest import ROOT, load_script
from tests.modeling.upernet import make_model, published_weights, settings

script = load_script("tools/convert_weights.py")
CLASSES = ("cat", "dog", "cow")
PALETTE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def run(*words):
    script.main([str(word) for word in words])


def save(path, state, **meta):
    torch.save({"meta": {"epoch": 36, "iter": 9, **meta}, "state_dict": state, "optimizer": {"state": {}}}, path)


def require_same_file(path, state):
    """The layout of the libraries: every name, every bit, and a `meta`."""
    content = torch.load(path, weights_only=True)
    assert set(content) == {"meta", "state_dict"}
    assert content["state_dict"].keys() == state.keys()
    for name, value in state.items():
        other = content["state_dict"][name]
        assert (other.dtype, other.shape) == (value.dtype, value.shape)
        assert other.numpy().tobytes() == value.numpy().tobytes()
    return content["meta"]


# One of each kind of head with each backbone; the others differ in the number of blocks and channels.
FEW = ("nat_mini_maskrcnn", "cascadedmaskrcnn_dinat_s_tiny", "cascadedmaskrcnn_dinat_mini", "upernet_dinat_s_tiny")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in DENSE]
)
def test_a_published_file_returns_to_the_bit(name, tmp_path, deterministic, capsys):
    state = small_state(name, deterministic)
    save(tmp_path / "a.pth", state, CLASSES=CLASSES, PALETTE=PALETTE)
    run(tmp_path / "a.pth", tmp_path / "b.safetensors", "--from-openmmlab")
    out = capsys.readouterr().out
    assert "left out: meta, optimizer" in out and "kept: names, colours of 3 classes (cat, dog, cow, ...)" in out
    own = read_checkpoint(tmp_path / "b.safetensors")
    assert not any(key.split(".")[0] in ("neck", "rpn_head", "roi_head", "decode_head") for key in own["model"])
    run(tmp_path / "b.safetensors", tmp_path / "c.pth", "--to-openmmlab")
    meta = require_same_file(tmp_path / "c.pth", state)
    assert (meta["CLASSES"], meta["PALETTE"]) == (CLASSES, PALETTE) and len(meta["source_sha256"]) == 64
    # What was written is read as a published file is.
    assert read_checkpoint(tmp_path / "c.pth")["model"].keys() == state.keys()


def test_parallel_wrappers_and_moving_averages_do_not_return(tmp_path, deterministic, capsys):
    state = small_state("nat_mini_upernet", deterministic)
    averages = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    wrapped = {f"module.{name}": value for name, value in (state | averages).items()}
    save(tmp_path / "a.pth", wrapped)
    run(tmp_path / "a.pth", tmp_path / "b.pth", "--to-openmmlab")
    require_same_file(tmp_path / "b.pth", state)
    assert f"left out: {len(averages)} moving averages (ema_backbone_patch_embed" in capsys.readouterr().out


def test_classes_of_a_file_without_them_are_those_of_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ROOT / MODELS["nat_mini_upernet"].config_file
    opts = "MODEL.DINAT.EMBED_DIM 8 MODEL.DINAT.NUM_HEADS [1,1,1,1] MODEL.SEM_SEG_HEAD.CONVS_DIM 8".split()
    names = script.model_names(config, opts)
    torch.save({"model": {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in names.items()}}, "a.pth")
    run("a.pth", "b.pth", "--to-openmmlab", "--config-file", config, *opts)
    content = torch.load("b.pth", weights_only=True)
    assert content["meta"]["CLASSES"][0] == "wall" and len(content["meta"]["CLASSES"]) == 150
    assert content["meta"]["PALETTE"][0] == [120, 120, 120]
    assert content["state_dict"].keys() == published_shapes("nat_mini_upernet").keys()


def test_a_wrong_config_is_one_line_that_names_the_right_one(tmp_path, capsys):
    config = ROOT / MODELS["nat_mini_upernet"].config_file
    state = {name: torch.zeros(1).expand(shape) for name, shape in published_shapes("maskrcnn_dinat_s_tiny").items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "w.pth", tmp_path / "x.pth", "--config-file", config)
    expected = (
        "holds the weights of maskrcnn_dinat_s_tiny: use configs/coco/detection/dinat_s/maskrcnn_dinat_s_tiny.yaml"
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and expected in lines[0]
    model = make_model(settings("dinat"), published_weights("dinat", load_script("tools/deterministic_weights.py")))
    with pytest.raises(CheckpointMismatchError) as error:
        Checkpointer(model).load(str(tmp_path / "w.pth"), checkpointables=[])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_only_a_pth_has_that_layout(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("a.pth", tmp_path / "x.safetensors", "--to-openmmlab")
    assert "--to-openmmlab writes a .pth" in capsys.readouterr().err


@pytest.fixture
def fine_tuned(tmp_path, deterministic):
    """A UPerNet that was fine-tuned to three classes with mmsegmentation."""
    weights = published_weights("dinat", deterministic)
    state = {name: value[:3] if "conv_seg" in name else value for name, value in weights.items()}
    save(tmp_path / "three.pth", state, CLASSES=CLASSES, PALETTE=np.array(PALETTE))
    cfg = settings("dinat")
    cfg.MODEL.WEIGHTS = str(tmp_path / "three.pth")
    return cfg


def test_other_classes_than_the_models_are_explained(fine_tuned):
    with pytest.raises(CheckpointMismatchError) as error:
        Predictor.from_cfg(fine_tuned)
    assert "has 3 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 11: a training can start" in str(error.value)
    assert "own classes (cat, dog, cow), set MODEL.SEM_SEG_HEAD.NUM_CLASSES 3" in str(error.value)


@pytest.mark.parametrize("converted", [False, True])
def test_results_have_the_class_names_of_the_file(fine_tuned, converted, tmp_path):
    if converted:
        run(fine_tuned.MODEL.WEIGHTS, tmp_path / "c.safetensors", "--from-openmmlab")
        fine_tuned.MODEL.WEIGHTS = str(tmp_path / "c.safetensors")
    fine_tuned.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    result = Predictor.from_cfg(fine_tuned)(np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8))
    assert list(result.classes.names) == list(CLASSES)
    assert [result.classes.color(i) for i in range(3)] == [tuple(color) for color in PALETTE]
    given = Predictor.from_cfg(fine_tuned, class_names=["x", "y", "z"])
    assert list(given.classes().names) == ["x", "y", "z"], "names given by the user come first"
