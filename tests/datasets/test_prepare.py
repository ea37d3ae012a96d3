"""The three command lines: resuming, missing files, damaged files, several processes."""

import json
import os
import shutil

import pytest
from PIL import Image

from examples.miniature_datasets import DATASETS, draw_dataset
from mask2former.data.published import ade20k

from ..conftest import load_script

FOLDERS = {"coco": "coco", "ade20k": "ADEChallengeData2016", "cityscapes": "cityscapes"}


@pytest.fixture(scope="module")
def scripts():
    return {name: load_script(f"datasets/prepare_{name}.py") for name in DATASETS}


@pytest.fixture
def copy(trees, tmp_path):
    """A function that copies the folder of a data set, so that tests can damage it."""

    def copy_one(name, prepared=True):
        if prepared:
            shutil.copytree(trees / FOLDERS[name], tmp_path / FOLDERS[name])
        else:
            draw_dataset(tmp_path, name, prepared=False)
        return tmp_path

    return copy_one


def files(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".preparation" not in path.parts
    }


@pytest.mark.parametrize("name", DATASETS)
def test_two_processes_make_the_same_files(name, copy, trees, scripts, capsys):
    root = copy(name, prepared=False)
    assert scripts[name].main(["--root", str(root), "--workers", "2"]) == 0
    assert files(root / FOLDERS[name]) == files(trees / FOLDERS[name])
    captured = capsys.readouterr()
    assert f"{name} semantic val: 4 made, 0 kept" in captured.out
    assert "4/4" in captured.err, "progress"


def test_one_split_and_the_root_of_the_environment(copy, scripts, monkeypatch, capsys):
    root = copy("ade20k", prepared=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert scripts["ade20k"].main(["--split", "val", "--task", "instance", "--workers", "1"]) == 0
    assert capsys.readouterr().out == "ade20k instance val: 4 made, 0 kept\n"
    made = {path.name for path in (root / "ADEChallengeData2016").iterdir()}
    assert made == {"images", "annotations", "annotations_instance", ".preparation", "ade20k_instance_val.json"}


@pytest.mark.parametrize("name", DATASETS)
def test_finished_files_are_checked_and_kept(name, copy, trees, scripts, capsys):
    root = copy(name)
    first = "annotations_detectron2/training/" if name == "ade20k" else ""
    made = [path for path in files(root / FOLDERS[name]) if path.suffix == ".png" and str(path).startswith(first)]
    made = [path for path in made if "semseg" in str(path) or "TrainIds" in str(path) or first]
    made = sorted(root / FOLDERS[name] / path for path in made if "val" not in str(path))
    assert len(made) == 4
    whole, cut, gone, wrong = made
    cut.write_bytes(cut.read_bytes()[:-20])
    gone.unlink()
    Image.new("L", (3, 3)).save(wrong)
    # A temporary file of a killed run.
    gone.with_name(f".{gone.name}.tmp").write_text("half")
    before = whole.stat().st_mtime_ns
    assert scripts[name].main(["--root", str(root), "--workers", "1"]) == 0
    assert f"{name} semantic train: 3 made, 1 kept" in capsys.readouterr().out
    assert whole.stat().st_mtime_ns == before
    assert files(root / FOLDERS[name]) == files(trees / FOLDERS[name])


def test_changed_sources_are_prepared_again(copy, scripts, capsys):
    root = copy("ade20k")
    label = root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    Image.new("L", Image.open(label).size, 5).save(label)
    assert scripts["ade20k"].main(["--root", str(root), "--split", "val", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "semantic val: 1 made, 3 kept" in out
    assert "instance val: 0 made, 4 kept" in out
    prepared = Image.open(root / "ADEChallengeData2016/annotations_detectron2/validation/ADE_val_00000001.png")
    assert prepared.getextrema() == (4, 4)


def test_an_interrupted_run_is_taken_up(copy, trees, scripts, capsys, monkeypatch):
    root = copy("ade20k", prepared=False)
    real, done = ade20k.make_panoptic, []

    def interrupted(job):
        done.append(job)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(job)

    arguments = ["--root", str(root), "--split", "val", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(ade20k, "make_panoptic", interrupted)
        with pytest.raises(SystemExit) as caught:
            scripts["ade20k"].main(arguments)
    assert caught.value.code == 130
    assert "interrupted: the same command" in capsys.readouterr().err
    folder = root / "ADEChallengeData2016"
    assert (folder / "ade20k_instance_val.json").exists()
    assert not (folder / "ade20k_panoptic_val.json").exists()
    # The machine crashed while a line was being written.
    journal = folder / ".preparation/ade20k_panoptic_val.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    assert scripts["ade20k"].main(arguments) == 0
    out = capsys.readouterr().out
    assert "semantic val: 0 made, 4 kept" in out
    assert "panoptic val: 3 made, 1 kept" in out
    for path, content in files(folder).items():
        if "val" in str(path):
            assert content == (trees / FOLDERS["ade20k"] / path).read_bytes()
    assert scripts["ade20k"].main(arguments) == 0
    assert "panoptic val: 0 made, 4 kept" in capsys.readouterr().out


def test_files_of_other_programs_stay_where_they_are_equal(copy, scripts, capsys):
    root = copy("coco")
    shutil.rmtree(root / "coco/.preparation")
    labels = sorted((root / "coco/panoptic_semseg_val2017").iterdir())
    for path in labels:
        # The same pixels in other bytes.
        Image.open(path).save(path, compress_level=0)
        os.utime(path, ns=(1, 1))
    assert scripts["coco"].main(["--root", str(root), "--split", "val", "--workers", "1"]) == 0
    assert {path.stat().st_mtime_ns for path in labels} == {1}
    assert "4 made" in capsys.readouterr().out


@pytest.mark.parametrize("name", DATASETS)
def test_all_that_is_missing_is_one_message(name, scripts, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        scripts[name].main(["--root", str(tmp_path)])
    assert caught.value.code == 1
    message = capsys.readouterr().err
    expected = {
        "coco": ["annotations/panoptic_train2017.json", "panoptic_val2017", "cocodataset.org"],
        "ade20k": ["images/training", "annotations/validation", "annotations_instance/validation", "csail.mit.edu"],
        "cityscapes": ["gtFine/train", "gtFine/val", "cityscapes-dataset.com"],
    }
    for part in (*expected[name], str(tmp_path), "README.md"):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_single_missing_files_are_listed_before_anything_is_made(copy, scripts, capsys):
    root = copy("ade20k", prepared=False)
    folder = root / "ADEChallengeData2016"
    (folder / "annotations/training/ADE_train_00000002.png").unlink()
    shutil.rmtree(folder / "annotations_instance/validation")
    with pytest.raises(SystemExit):
        scripts["ade20k"].main(["--root", str(root)])
    message = capsys.readouterr().err
    assert "annotations/training/ADE_train_00000002.png" in message
    assert str(folder / "annotations_instance/validation") in message
    assert "ADE_val" not in message, "a folder that is missing is enough"
    assert not (folder / "annotations_detectron2").exists()


def test_damaged_files_are_named_and_the_rest_is_made(copy, scripts, capsys):
    root = copy("coco", prepared=False)
    (damaged, *others) = sorted((root / "coco/panoptic_train2017").iterdir())
    content = damaged.read_bytes()
    damaged.write_bytes(content[:50])
    with pytest.raises(SystemExit):
        scripts["coco"].main(["--root", str(root), "--workers", "1"])
    assert f"1 of 4 images failed:\n  {damaged}: can't be read" in capsys.readouterr().err
    made = {path.name for path in (root / "coco/panoptic_semseg_train2017").iterdir()}
    assert made == {path.name for path in others}
    damaged.write_bytes(content)
    assert scripts["coco"].main(["--root", str(root), "--workers", "1"]) == 0
    assert "coco semantic train: 1 made, 3 kept" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"annotations": [{"file_name": "1.png"}]})])
def test_damaged_json_is_named(copy, scripts, capsys, content):
    root = copy("coco", prepared=False)
    (root / "coco/annotations/panoptic_train2017.json").write_text(content)
    with pytest.raises(SystemExit):
        scripts["coco"].main(["--root", str(root)])
    assert "annotations/panoptic_train2017.json: not " in capsys.readouterr().err
