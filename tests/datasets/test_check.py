import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mask2former.config import setup_cfg
from mask2former.data.published import check_datasets, check_settings
from mask2former.data.published.check import dataset_name
from mask2former.evaluation.reproduction import EVALUATIONS
from mask2former.model_zoo import SETTINGS

from ..conftest import ROOT, golden, load_script

FOLDERS = {"coco": "coco", "ade20k": "ADEChallengeData2016", "cityscapes": "cityscapes"}


@pytest.fixture(scope="module")
def script():
    return load_script("datasets/check.py")


@pytest.fixture
def copy(trees, tmp_path, monkeypatch):
    """A function that copies the folder of a data set to where DETECTRON2_DATASETS points."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def copy_one(name):
        shutil.copytree(trees / FOLDERS[name], tmp_path / FOLDERS[name])
        return tmp_path / FOLDERS[name]

    return copy_one


def check_setting(setting, **options):
    (check,) = check_settings([setting], **options)
    return check


def messages(check, split, blocks=True):
    return check.findings[split].messages(blocks=blocks)


@pytest.mark.parametrize("setting", SETTINGS)
def test_names_are_those_of_the_configs(setting):
    config = golden("config", setting)
    assert [dataset_name(setting, "train")] == config["DATASETS.TRAIN"]
    assert [dataset_name(setting, "val")] == config["DATASETS.TEST"]


@pytest.mark.parametrize("fault", ["", "missing class", "damaged"])
def test_classifiers(fault, script, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.JPEG", "JPEG")
    for folder in (
        tmp_path / "imagenet" / split / f"n{number:08}" for split in ("train", "val") for number in range(1000)
    ):
        folder.mkdir(parents=True)
        (folder / "a.JPEG").hardlink_to(tmp_path / "a.JPEG")
    images = sorted((tmp_path / "imagenet" / "val").glob("*/*"))
    if fault == "damaged":
        images[0].unlink()
        images[0].write_bytes(b"damaged")
    elif fault:
        shutil.rmtree(images[0].parent)
    status = script.main(["--root", str(tmp_path), "--dataset", "imagenet", "--full", "--workers", "1"])
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("imagenet")]
    assert (row[1], row[3]) == ("yes", "NO" if fault else "yes")
    assert status == bool(fault) and (fault != "damaged" or str(images[0]) in out)


def test_every_published_model_has_a_row():
    rows = {dataset_name(name, "val") for name in (*SETTINGS, "imagenet", "imagenet_22k")}
    # One of each folder; they differ in the backbone, and in that of classifiers also in the data.
    files = [ROOT / evaluation.model.config_file for evaluation in EVALUATIONS.values()]
    configs = {(file.parent, "22k" in file.stem): file for file in files}
    assert {name for config in configs.values() for name in setup_cfg(config).DATASETS.TEST} <= rows


@pytest.mark.parametrize("full", [[], ["--full", "--workers", "2"]])
def test_sound_trees_can_train_and_evaluate(trees, script, capsys, monkeypatch, full):
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    assert script.main(["--root", str(trees), *full]) == 0
    out = capsys.readouterr().out
    for setting in SETTINGS:
        (row,) = [line for line in out.splitlines() if line.startswith(setting)]
        assert row.split() == [setting, "yes", "4", "yes", "4"]
    for count in (118287, 5000, 20210, 2000, 2975, 500):
        assert f"4 instead of {count}" in out
    assert "problem (" not in out


def test_published_numbers_are_not_noted(trees, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    monkeypatch.setattr("mask2former.data.published.check.PUBLISHED_IMAGES", {"ade20k": {"train": 4, "val": 4}})
    assert not any(findings.counts for findings in check_setting("ade20k-semantic", full=True).findings.values())


def test_nothing_there(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    assert script.main(["--root", str(tmp_path), "--dataset", "coco", "--split", "val"]) == 1
    out = capsys.readouterr().out
    for path in ("val2017", "annotations/instances_val2017.json", "panoptic_val2017", "panoptic_semseg_val2017"):
        assert str(tmp_path / "coco" / path) in out
    assert "cocodataset.org" in out and "prepare_coco.py" in out
    assert "train2017" not in out and "ade20k" not in out
    assert out.splitlines()[2].split() == ["coco-panoptic", "NO", "0"]


def test_what_only_evaluation_needs_does_not_stop_training(copy):
    folder = copy("coco")
    shutil.rmtree(folder / "panoptic_semseg_val2017")
    (folder / "annotations/instances_val2017.json").unlink()
    panoptic, instance = check_settings(["coco-panoptic", "coco-instance"])
    assert panoptic.can_train and not panoptic.can_evaluate
    assert panoptic.images == {"train": 4, "val": 4}
    assert instance.can_train and not instance.can_evaluate
    assert "panoptic_semseg_val2017" in messages(panoptic, "val")[0]


def test_single_missing_files(copy):
    folder = copy("cityscapes")
    gone = sorted((folder / "leftImg8bit/train").rglob("*.png"))[1]
    gone.unlink()
    for path in sorted((folder / "gtFine/val").rglob("*_labelIds.png"))[:2]:
        path.unlink()
    report = check_setting("cityscapes-panoptic")
    assert messages(report, "train") == [f"missing images: {gone}"]
    (message,) = messages(report, "val")
    assert message.startswith("missing label images (2): ") and "_gtFine_labelIds.png" in message
    instance = check_setting("cityscapes-instance")
    assert instance.can_evaluate, "it reads other label images"
    assert instance.images["train"] == 3, "images are looked for, not annotations"


def test_images_without_annotation_are_a_note(copy):
    folder = copy("coco")
    shutil.copy(next((folder / "val2017").iterdir()), folder / "val2017/000000000001.jpg")
    report = check_setting("coco-instance")
    assert report.can_evaluate
    added = f"images without an entry in the annotations: {folder / 'val2017/000000000001.jpg'}"
    assert added in messages(report, "val", blocks=False)


def test_damaged_json(copy):
    folder = copy("coco")
    (folder / "annotations/panoptic_train2017.json").write_text("{")
    report = check_setting("coco-panoptic")
    assert not report.can_train and report.can_evaluate
    assert "panoptic_train2017.json: not valid JSON" in messages(report, "train")[0]
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 1000
    del content["images"][0]
    path.write_text(json.dumps(content))
    (first, second) = messages(check_setting("coco-panoptic"), "val")
    assert "images of the panoptic JSON that the instances JSON lacks" in first and "000139" not in first
    assert "not in the class list" in second and "1000" in second


def test_full_finds_damaged_images_and_labels(copy):
    folder = copy("ade20k")
    image = folder / "images/training/ADE_train_00000001.jpg"
    label, other = (folder / f"annotations_detectron2/training/ADE_train_0000000{i}.png" for i in (2, 3))
    image.write_bytes(image.read_bytes()[:300])
    values = np.array(Image.open(label))
    values[0, :2] = (150, 254)
    Image.fromarray(values).save(label)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(other)
    assert check_setting("ade20k-semantic").can_train, "all files are there"
    semantic, panoptic, instance = check_settings(["ade20k-semantic", "ade20k-panoptic", "ade20k-instance"], full=True)
    for report in (semantic, panoptic):
        unreadable, outside, size = messages(report, "train")
        assert unreadable.startswith(f"unreadable images: {image}")
        assert outside == f"ids or colours that are not in the class list: {label}: ids 150, 254"
        assert size.startswith(f"label images whose size differs from the image: {other}: 3 x 3, image ")
        assert report.can_evaluate
    assert len(messages(instance, "train")) == 1
    assert "unreadable images" in messages(instance, "train")[0]


def test_full_finds_panoptic_pngs_and_json_that_disagree(copy):
    folder = copy("coco")
    path = folder / "annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    first, second, _, fourth = (annotation["segments_info"] for annotation in content["annotations"])
    gone = first.pop()
    second.append({**second[0], "id": 77})
    fourth[0]["area"] += 1
    path.write_text(json.dumps(content))
    report = check_setting("coco-panoptic", full=True)
    names = [annotation["file_name"] for annotation in content["annotations"]]
    in_png, in_json = messages(report, "train")
    assert in_png.startswith("segments in panoptic PNGs that segments_info lacks: ")
    assert in_png.endswith(f"{names[0]}: ids {gone['id']}")
    assert in_json.startswith("segments in segments_info that the panoptic PNG lacks: ")
    assert in_json.endswith(f"{names[1]}: ids 77")
    (area,) = [m for m in messages(report, "train", blocks=False) if "area" in m]
    assert area.endswith(f"{names[3]}: ids {fourth[0]['id']}")
    assert report.can_evaluate and not report.can_train


def test_ade20k_stuff_under_things_is_as_published(copy):
    folder = copy("ade20k")
    path = folder / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    stuff, thing = content["annotations"][0]["segments_info"][0], content["annotations"][0]["segments_info"][-1]
    stuff["area"] += 5
    content["annotations"][1]["segments_info"].append({**stuff, "id": 99})
    path.write_text(json.dumps(content))
    check = check_setting("ade20k-panoptic", full=True)
    for split in ("train", "val"):
        (count,) = [problem.text for problem, _, _ in check.findings[split]]
        assert "number of images" in count
    thing["area"] += 5
    path.write_text(json.dumps(content))
    assert any("area" in m for m in messages(check_setting("ade20k-panoptic", full=True), "val", blocks=False))


def test_run_lengths_of_another_size(copy):
    folder = copy("ade20k")
    path = folder / "ade20k_instance_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"]["size"] = [5, 6]
    path.write_text(json.dumps(content))
    (message,) = messages(check_setting("ade20k-instance"), "train")
    assert message.startswith("run lengths (RLE) whose size differs from the image: ")
    assert message.endswith("ADE_train_00000001.jpg: 6 x 5")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'coco-semantic', expected one of coco-panoptic"):
        check_setting("coco-semantic")
    with pytest.raises(ValueError, match=r"'test'.*train, val"):
        check_setting("coco-panoptic", splits=["test"])


def test_class_folders_are_checked_as_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = ["imagenet_val", "imagenet_22k_val", "imagenet_val"]
    found = check_datasets(names)
    assert list(found) == names[:2] and found["imagenet_val"].images == 0
    for name, folder in (("imagenet_val", "imagenet/val"), ("imagenet_22k_val", "imagenet22k/val")):
        (message,) = found[name].findings.messages(blocks=True)
        assert message.startswith(f"missing or damaged files: {tmp_path / folder}. Download it")
    for index in range(1000):
        folder = tmp_path / "imagenet" / "val" / f"n{index:04d}"
        folder.mkdir(parents=True)
        (folder / "a.JPEG").touch()
    (tmp_path / "imagenet22k" / "val" / "n1").mkdir(parents=True)
    found = check_datasets(names)
    assert found["imagenet_val"].images == 1000
    assert found["imagenet_val"].findings.messages(blocks=True) == []
    notes = found["imagenet_val"].findings.messages(blocks=False)
    assert notes == ["number of images differs from the published data set: 1000 instead of 50000"]
    (message,) = found["imagenet_22k_val"].findings.messages(blocks=True)
    assert "1 class folders, data set imagenet_22k_val has 21841 classes" in message
    (tmp_path / "imagenet" / "val" / "n0007" / "a.JPEG").unlink()
    (message,) = check_datasets(names)["imagenet_val"].findings.messages(blocks=True)
    assert "n0007: no image of this class" in message
