"""Files of mmdetection and mmsegmentation as they are found: their `meta`, moving averages, foreign objects, damage."""

import argparse
import logging
import pathlib
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata

from mask2former import setup_cfg
from mask2former.checkpoint import (
    CheckpointError,
    FileClasses,
    compare,
    compare_backbone,
    fitting_models,
    from_openmmlab,
    holds_backbone_only,
    read_checkpoint,
    to_openmmlab,
)
from mask2former.model_zoo import MODELS
from tests.checkpoint.openmmlab import DENSE, foreign_class, forget, meta_state, small_state
from tests.conftest import ROOT

NAME = "nat_mini_upernet"
META = {
    "mmseg_version": "0.20.2+unknown",
    "config": "norm_cfg = dict(type='SyncBN')\n",
    "CLASSES": ("wall", "building", "bed "),
    "PALETTE": [[120, 120, 120], [180, 120, 120], [204, 5, 255]],
    "env_info": "sys.platform: linux",
    "seed": None,
    "epoch": 12,
    "iter": 160000,
    "hook_msgs": {"best_score": np.float64(47.1), "best_ckpt": "a.pth"},
    "time": "Wed Aug 17 10:11:12 2022",
}


@pytest.fixture
def state(deterministic):
    return small_state(NAME, deterministic)


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def test_all_thirty_four_are_there():
    assert len(DENSE) == 34 and set(DENSE) <= set(MODELS)


def content(kind, state):
    optimizer = {"state": {0: {"step": 5, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 6e-5, "params": [0]}]}
    return {
        "bare": state,
        "published": {"meta": META, "state_dict": state},
        "training": {"meta": META, "state_dict": state, "optimizer": optimizer},
        "parallel": {"meta": META, "state_dict": OrderedDict((f"module.{key}", value) for key, value in state.items())},
        "without counters": {
            "state_dict": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        },
        "NumPy": {
            "meta": META | {"PALETTE": np.array(META["PALETTE"], np.uint8), "mIoU": np.float32(1)},
            "state_dict": state,
        },
    }[kind]  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", ["bare", "published", "training", "parallel", "without counters", "NumPy"])
def test_all_forms_are_read_without_running_them(kind, old, state, tmp_path, caplog):
    torch.save(content(kind, state), tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    found = read_checkpoint(tmp_path / "a.pth")
    expected = content(kind, state) if kind == "without counters" else {"state_dict": state}
    assert same(found["model"], expected["state_dict"]) and not caplog.records
    taken, report = compare(from_openmmlab(found["model"]), from_openmmlab(state))
    assert report.exact and len(taken) == len(found["model"])
    classes = FileClasses.of(found)
    if "meta" in found:
        assert classes == FileClasses(("wall", "building", "bed"), tuple(map(tuple, META["PALETTE"])))
        assert found["meta"]["iter"] == 160000
    else:
        assert classes is None


def test_objects_of_other_programs_beside_the_weights_are_left_out(state, tmp_path, caplog):
    config = foreign_class("mmcv.utils.config", "ConfigDict", (dict,))
    buffer = foreign_class("mmengine.logging.history_buffer", "HistoryBuffer")
    history = buffer()
    history.values = np.arange(3.0)
    meta = META | {
        "cfg": config(model=config(type="UPerHead"), lr=1),
        "history": [history],
        "args": argparse.Namespace(config="a.py"),
        "work_dir": pathlib.PurePosixPath("/a/b"),
    }
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    forget()
    found = read_checkpoint(tmp_path / "a.pth")
    assert same(found["model"], state) and found["meta"]["iter"] == 160000
    assert found["meta"]["cfg"]["lr"] == 1, "what a dict holds stays"
    assert FileClasses.of(found).names == ("wall", "building", "bed")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "objects of other programs are left out" in record.getMessage()
    for name in ("mmcv.utils.config.ConfigDict", "mmengine.logging.history_buffer.HistoryBuffer", "argparse.Namespace"):
        assert name in record.getMessage()


class Run:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("function", [open, subprocess.check_call, eval])
def test_code_beside_the_weights_is_not_run(function, state, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    arguments = {
        open: ("ran", "w"), subprocess.check_call: (["touch", "ran"],), eval: ("open('ran', 'w')",),
    }[function]  # fmt: skip
    torch.save({"meta": {"x": Run(function, *arguments)}, "state_dict": state}, "a.pth")
    assert same(read_checkpoint("a.pth")["model"], state)
    assert not (tmp_path / "ran").exists() and "are left out" in caplog.text


def test_weights_that_need_objects_are_refused_and_read_only_when_asked(state, tmp_path):
    kind = foreign_class("mmdet.models", "MaskRCNN", weight=None)
    for number, value in enumerate((kind(), {"state_dict": kind()}, {"state_dict": {**state, "x": kind()}})):
        torch.save(value, tmp_path / f"{number}.pth")
    module = torch.nn.Linear(2, 2)
    torch.save({"state_dict": module.state_dict(), "model": module}, tmp_path / "module.pth")
    for number in range(3):
        with pytest.raises(CheckpointError, match=r"--allow-pickle opens it if you trust.*mmdet\.models\.MaskRCNN"):
            read_checkpoint(tmp_path / f"{number}.pth")
    forget()
    with pytest.raises(CheckpointError, match=r"the program that wrote it is needed to open it: .*mmdet"):
        read_checkpoint(tmp_path / "0.pth", allow_pickle=True)


def test_an_old_file_with_objects_is_read_only_when_asked(state, tmp_path):
    content = {"state_dict": state, "args": argparse.Namespace(a=1)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        read_checkpoint(tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth", allow_pickle=True)
    assert same(found["model"], state) and found["args"].a == 1


@pytest.mark.parametrize("flipped", [0.002, 0.01, 0.03, 0.05])
def test_a_damaged_list_of_contents_is_one_line(flipped, state, tmp_path):
    """A wrong byte in the pickled part, which is at the beginning."""
    torch.save({"meta": META, "state_dict": state}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    for place in range(40):
        content[int(flipped * len(content)) + 7 * place] ^= 0xFF
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_one_line(kept, state, tmp_path):
    torch.save({"meta": META, "state_dict": state}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged or not a checkpoint") as error:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_moving_averages_are_accounted_for_as_dropped(state):
    averages = {f"ema_{name.replace('.', '_')}": value for name, value in state.items()}
    model = from_openmmlab(state)
    taken, report = compare(from_openmmlab({**state, **averages}), model)
    assert report.exact and set(report.dropped) == set(averages) and taken.keys() == model.keys()
    assert not compare({**model, "ema.weight": torch.zeros(1)}, model)[1].exact, "a name of another kind"


@pytest.mark.parametrize("name", DENSE)
def test_a_classifier_starts_each_dense_model(name):
    """The config names its classifier; every name on either side is accounted for."""
    config = ROOT / MODELS[name].config_file
    weights = setup_cfg(config, []).MODEL.WEIGHTS
    classifier, model = meta_state(weights.removesuffix(".pth")), from_openmmlab(meta_state(name))
    assert holds_backbone_only(classifier, model)
    taken, report = compare_backbone(classifier, model)
    assert report.exact and not report.resized
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert len(taken) + len(report.dropped) == len(classifier)
    assert len(taken) + len(report.initial) == len(model)
    text = report.backbone_summary()
    assert text.startswith(
        f"{len(taken)} weights are loaded, dropped are norm.weight, norm.bias, head.weight, head.bias"
    )
    assert "norm0, norm1, norm2, norm3 start at 1 and 0 (8 weights); the rest" in text and "\n" not in text


@pytest.mark.parametrize("name", DENSE)
def test_names_and_shapes_return_in_their_order(name):
    state = meta_state(name)
    returned = to_openmmlab(from_openmmlab(state))
    assert list(returned) == list(state)
    assert all(returned[key].shape == value.shape for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maskrcnn_dinat_s_tiny", ["maskrcnn_dinat_s_tiny"]),
        ("nat_small_upernet", ["nat_small_upernet"]),
        ("upernet_dinat_mini", ["upernet_dinat_mini", "nat_mini_upernet"]),
        ("nat_mini_upernet", ["nat_mini_upernet", "upernet_dinat_mini"]),
    ],
)
def test_a_published_model_is_recognised(name, expected):
    """NAT and DiNAT share names and shapes unless one has a layer scale: the file name comes first."""
    assert [model.name for model in fitting_models(meta_state(name), f"/weights/{name}.pth")] == expected


def test_other_weights_are_of_no_published_model(state):
    assert fitting_models({"a": torch.zeros(1)}) == []
    assert fitting_models(state) == [], "other shapes"


CFG = setup_cfg(ROOT / MODELS["maskrcnn_dinat_mini"].config_file, ["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
COCO = Metadata(name="coco", thing_classes=["person", "car"], thing_colors=[(1, 2, 3)] * 2, other="kept")


def test_names_of_a_file_replace_those_of_another_data_set():
    found = FileClasses(("cat", "dog", "cow"), ((1, 1, 1), (2, 2, 2), (3, 3, 3))).describe(COCO, CFG)
    assert found.thing_classes == ["cat", "dog", "cow"] and found.thing_colors == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert found.get("other") is None, "what belongs to other classes"
    assert FileClasses(("cat", "dog")).describe(COCO, CFG) is COCO, "not the model's classes"
    three = Metadata(name="three", thing_classes=["a", "b", "c"], thing_colors=[(9, 9, 9)] * 3, other="kept")
    found = FileClasses(("cat", "dog", "cow")).describe(three, CFG)
    assert found.thing_classes == ["cat", "dog", "cow"] and found.thing_colors == [(9, 9, 9)] * 3
    assert found.other == "kept"
    assert FileClasses(("a", "b", "c")).describe(three, CFG) is three


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"meta": {"CLASSES": "cat"}}, ("cat",)),
        ({"meta": {"dataset_meta": {"classes": ["cat", "dog"], "palette": [[1, 2, 3]]}}}, ("cat", "dog")),
        ({"meta": {"CLASSES": None}}, None),
        ({"meta": {"CLASSES": [1, 2]}}, None),
        ({"meta": "none"}, None),
        ({"metadata": {"classes": '["cat"]'}}, ("cat",)),
        ({"metadata": {"classes": "cat"}}, None),
        ({}, None),
    ],
)
def test_class_names_in_files(content, names):
    classes = FileClasses.of(content)
    assert names == (classes and classes.names)
    assert not classes or not classes.colors
