"""Folders of class folders in tools/dataset.py: inspection, preview, split, and the config of a classifier."""

import numpy as np
import pytest
import yaml
from PIL import Image

from mask2former import setup_cfg
from mask2former.data.custom.class_list import SourceError
from mask2former.data.custom.classification import make_class_recipe
from mask2former.data.custom.inspection import inspect_sources, render
from mask2former.data.custom.model_size import Machine, RecipeError
from mask2former.data.custom.models import MODELS
from mask2former.data.custom.preview import draw, write_preview
from mask2former.data.custom.recipe import make_recipe
from mask2former.data.custom.source import Source
from mask2former.data.custom.split import split
from mask2former.data.datasets import AnnotationError, register_custom_datasets
from tests.conftest import ROOT, load_script
from tests.data.custom.conftest import registered

__all__ = ["registered"]

CLASSES = ("blue", "green", "red")
BASES = ROOT / "configs" / "_base_"
BACKBONES = MODELS["mask2former"].backbones(BASES)
CPU = Machine(0.0, 1, 2)
tool = load_script("tools/dataset.py")


def draw_set(root, count=10, first=0):
    """Noise in the colour of each class."""
    for k, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(first, first + count):
            pixels = np.random.RandomState(10 * number + k).randint(0, 90, (40 + 8 * (number % 2), 56, 3))
            pixels[..., 2 - k] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root


def inspect(*roots):
    parts = zip(roots, ("train", "val"), strict=False)
    return inspect_sources([Source(root, split=name) for root, name in parts], workers=1)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    inspection = inspect(draw_set(tmp_path / "train"), draw_set(tmp_path / "val", 4, first=100))
    assert [(c.id, c.name) for c in inspection.categories] == list(enumerate(CLASSES))
    assert dict(inspection.train.images()) == {0: 10, 1: 10, 2: 10} and inspection.usable
    printed = render(inspection)
    assert "train: class_folders, 30 images of 56 x 44 (56 x 40 to 56 x 48), 3 classes\n" in printed
    assert "classes: blue, green, red\n" in printed and printed.endswith("\nusable")


def test_problems_are_found(tmp_path):
    root = draw_set(tmp_path / "train", 4)
    (root / "red" / "000.png").write_bytes((root / "blue" / "000.png").read_bytes())
    (root / "red" / "001.png").write_bytes(b"nothing")
    val = draw_set(tmp_path / "val", 2, first=50)
    (val / "green" / "050.png").write_bytes((root / "green" / "003.png").read_bytes())
    inspection = inspect(root, val)
    printed = render(inspection)
    assert not inspection.usable and "unreadable images" in printed and "000.png = 000.png" in printed
    assert "images that are in both train and val" in " ".join(printed.split())
    (val / "yellow").mkdir()
    with pytest.raises(AnnotationError, match="yellow"):
        inspect(root, val)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "a.png").write_bytes(b""), "only images do not form a format .*class_folders.*a.png"),
        (lambda root: [path.rename(root / "red" / path.name) for path in (root / "blue",)], "a folder"),
    ],
)
def test_other_folders_are_refused(change, message, tmp_path):
    root = draw_set(tmp_path / "train", 1)
    change(root)
    with pytest.raises((SourceError, AnnotationError), match=message):
        inspect(root)


def test_splits_are_no_classes(tmp_path):
    draw_set(tmp_path / "train", 1), draw_set(tmp_path / "val", 1)
    with pytest.raises(SourceError, match=r"folders such as train, which are not classes: pass --images .*/train"):
        inspect(tmp_path)
    with pytest.raises(SourceError, match="the names of the folders"):
        Source(tmp_path / "train", classes=tmp_path / "train" / "red" / "000.png")


def test_a_split_spreads_the_classes_and_is_read_again(tmp_path):
    root = draw_set(tmp_path / "all")
    parts = split(inspect(root).train, tmp_path / "lists", 0.2, seed=0)
    assert {name: dict(part.images()) for name, part in parts.items()} == {
        "train": {0: 8, 1: 8, 2: 8}, "val": {0: 2, 1: 2, 2: 2}
    }  # fmt: skip
    again = inspect_sources([part.content.source for part in parts.values()], workers=1)
    for name, part in parts.items():
        assert [image.path for image in again.splits[name].content.images] == [i.path for i in part.content.images]
    assert (tmp_path / "lists" / "val.txt").read_text().startswith("blue/")


def test_the_preview_names_the_class_of_each_image(tmp_path):
    inspection = inspect(draw_set(tmp_path / "train", 3))
    content = inspection.train.content
    picture = draw(content, content.images[0])
    assert picture.shape == (480, 672, 3)
    # The box of the name is the only part without the blue of the image.
    boxed = np.argwhere(picture[..., 2] < 100)
    assert len(boxed) > 100 and boxed.max(0)[0] < 40 and boxed.max(0)[1] < 100
    assert [path.name for path in write_preview(inspection, tmp_path / "out", 4, 0)] == [
        "samples_train.png",
        "classes.png",
    ]


def test_without_a_gpu_the_small_model_is_trained(tmp_path):
    recipe = make_class_recipe(inspect(draw_set(tmp_path / "train")), CPU, BACKBONES)
    values = recipe.values
    assert recipe.size == "pico" and values["MODEL.CLASSIFIER.NUM_CLASSES"] == 3
    assert (values["INPUT.CLASSIFICATION.SIZE"], values["SOLVER.IMS_PER_BATCH"]) == (64, 30)
    assert values["SOLVER.EPOCHS"] == 667 and values["TEST.BEST_METRIC"] == "classification/top1"


@pytest.mark.parametrize(
    ("memory", "gpus", "weights", "size", "batch", "checkpoint"),
    [
        (24, 1, "", "mini", (30, 1), False),
        (24, 2, "dinat_base.pth", "base", (28, 1), False),
        (8, 1, "dinat_large.pth", "large", (6, 5), False),
    ],
)
def test_with_a_gpu_the_published_settings_are_followed(memory, gpus, weights, size, batch, checkpoint, tmp_path):
    inspection, machine = inspect(draw_set(tmp_path / "train")), Machine(memory, gpus, 8)
    recipe = make_class_recipe(inspection, machine, BACKBONES, weights=weights)
    values = recipe.values
    assert recipe.size == size and recipe.bases == [f"../imagenet/classification/dinat/dinat_{size}.yaml"]
    assert (values["SOLVER.IMS_PER_BATCH"], values["SOLVER.ACCUMULATE_STEPS"]) == batch
    assert values["MODEL.DINAT.USE_CHECKPOINT"] == checkpoint
    assert values["SOLVER.BASE_LR"] == (5e-5 if weights else 1e-3)
    assert values.get("INPUT.CLASSIFICATION.MIX_PROB", 1.0) == (0.0 if weights else 1.0)
    assert values["SOLVER.EPOCHS"] == (267 if weights else 300)


def test_images_are_mixed_in_pairs(tmp_path):
    inspection, machine = inspect(draw_set(tmp_path / "train")), Machine(1.3, 1, 2)
    values = make_class_recipe(inspection, machine, BACKBONES, "mini").values
    assert (values["SOLVER.IMS_PER_BATCH"], values["INPUT.CLASSIFICATION.MIX_PROB"]) == (1, 0.0)


def test_too_little_memory_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="too little to train DiNAT-Mini on images of 224 x 224"):
        make_class_recipe(inspect(draw_set(tmp_path / "train", 1)), Machine(0.5, 1, 2), BACKBONES)


@pytest.mark.usefixtures("registered", "loggers_restored")
def test_one_command_makes_a_config_that_the_next_one_takes(tmp_path, capsys):
    draw_set(tmp_path / "train"), draw_set(tmp_path / "val", 4, first=100)
    options = ["--images", str(tmp_path / "train"), "--val-images", str(tmp_path / "val"), "--workers", "1"]
    assert tool.main(["config", *options, "--gpu-memory", "0", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"python train_net.py --config-file {tmp_path}/run/config.yaml"
    config = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    assert [entry["format"] for entry in content["DATASETS"]["CUSTOM"]] == ["class_folders"] * 2
    cfg = setup_cfg(config)
    assert cfg.MODEL.META_ARCHITECTURE == "ImageClassifier" and cfg.MODEL.CLASSIFIER.NUM_CLASSES == 3
    registered = register_custom_datasets(cfg.DATASETS.CUSTOM, config.parent)
    assert [entry["name"] for entry in registered] == ["run_train", "run_val"]


def test_recipes_of_segmentation_keep_their_bases(draw):
    root = draw(4)
    source = Source(root / "images", annotations=root / "instances.json")
    recipe = make_recipe(inspect_sources([source], workers=1), CPU, BACKBONES)
    assert recipe.bases == ["mask2former.yaml", "dinat_pico.yaml", "shapes.yaml"]
