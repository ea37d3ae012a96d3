"""Settings follow from data and machine, with reasons."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import yaml

from mask2former.config import setup_cfg
from mask2former.data.custom.inspection import InspectedSplit, Inspection
from mask2former.data.custom.model_size import (
    COSTS,
    SIZES,
    Machine,
    RecipeError,
    largest_fit,
    size_of_weights,
)
from mask2former.data.custom.models import MODELS
from mask2former.data.custom.recipe import fitting_dilations, make_recipe
from mask2former.data.custom.scan import Scan
from mask2former.data.custom.source import LabelledImage, Source, SplitContent
from mask2former.data.custom.training_files import write_config
from mask2former.data.datasets import Category, register_custom_datasets
from mask2former.data.datasets.custom import CustomDataset

from ...conftest import ROOT

BASES = ROOT / "configs/_base_"
BACKBONES = MODELS["mask2former"].backbones(BASES)
GPU_24 = Machine(24, 1, 8)


def inspection(tmp_path, format="coco_instance", images=1000, pixels=(480, 640), segments=5, things=2):
    """Inspection of data whose files are empty."""
    files = {"coco_instance": ["annotations"], "coco_panoptic": ["annotations"], "semantic": ["classes"]}[format]
    folders = {"coco_instance": [], "coco_panoptic": ["panoptic"], "semantic": ["labels"]}[format]
    for name in files:
        (tmp_path / name).touch()
    for name in folders:
        (tmp_path / name).mkdir(exist_ok=True)
    source = Source(tmp_path, **{name: tmp_path / name for name in files + folders})
    categories = tuple(Category(i, str(i), (0, 0, 0), i < things) for i in range(3))
    scan = Scan(pixels, "", pixels=Counter({0: pixels[0] * pixels[1]}), segments=Counter({0: segments}))
    content = SplitContent(source, categories, (LabelledImage(0, tmp_path / "0.jpg"),) * images)
    return Inspection({"train": InspectedSplit(content, (scan,) * images)}, {})


def recipe(tmp_path, machine=GPU_24, size=None, weights="w.pth", **data):
    return make_recipe(inspection(tmp_path, **data), machine, BACKBONES, size, weights)


def test_length_is_that_of_published_settings_for_their_number_of_images(tmp_path):
    cityscapes = recipe(tmp_path, images=2975).values
    assert cityscapes["SOLVER.MAX_ITER"] == pytest.approx(90000, rel=0.001)
    assert cityscapes["SOLVER.STEPS"] == [round(0.889 * cityscapes["SOLVER.MAX_ITER"]), pytest.approx(86700, rel=0.001)]
    assert recipe(tmp_path, images=20210).values["SOLVER.MAX_ITER"] == pytest.approx(160000, rel=0.01)
    assert recipe(tmp_path, images=100).values["SOLVER.MAX_ITER"] == pytest.approx(484 * 100 / 16, rel=0.01)
    assert recipe(tmp_path, images=1).values["SOLVER.MAX_ITER"] == 500
    assert recipe(tmp_path, images=100).values["TEST.EVAL_PERIOD"] == 302


def test_the_small_model_is_trained_for_as_long_as_in_the_demo(tmp_path):
    cpu = Machine(0, 1, 2)
    few, many = (recipe(tmp_path, cpu, images=count).values for count in (100, 2000))
    assert (few["SOLVER.MAX_ITER"], many["SOLVER.MAX_ITER"]) == (800, 2500)
    assert few["SOLVER.LR_REFERENCE_BATCH"] == 8 and "SOLVER.BASE_LR" not in few


def test_more_memory_never_gives_a_smaller_model_or_fewer_images(tmp_path):
    order = [*reversed(COSTS)]
    before = (0, 0)
    for memory in (5, 6, 8, 11, 16, 24, 40, 80):
        values = recipe(tmp_path, Machine(memory, 1, 8), pixels=(1024, 1024))
        side = values.values["INPUT.IMAGE_SIZE"]
        found = (side, order.index(values.size))
        assert found >= before
        before = found
    assert before == (1024, 4)


@pytest.mark.parametrize("memory", [5, 8, 12, 24, 80])
@pytest.mark.parametrize("side", [256, 512, 1024])
def test_what_is_chosen_fits(memory, side):
    fit = largest_fit(memory, side * side, most=16)
    if fit:
        assert 1 <= fit.images <= 16
        assert fit.memory(side * side) <= 0.9 * memory + 1e-9
    else:
        assert all(cost.fixed + cost.per_image(side * side, True) > 0.9 * memory for cost in COSTS.values())


def test_the_largest_model_comes_before_speed():
    fit = largest_fit(11, 1024 * 1024, most=16)
    assert (fit.size, fit.checkpoint, fit.images) == ("large", True, 1)
    fit = largest_fit(24, 1024 * 1024, most=16)
    assert (fit.size, fit.checkpoint, fit.images) == ("large", False, 1)
    assert largest_fit(80, 1024 * 1024, most=4).images == 4


@pytest.mark.parametrize(
    ("images", "weights", "size", "reason"),
    [
        (8, "", "mini", "because 8 images are few"),
        (8, "w.pth", "mini", "larger sizes are for 100 and more"),
        (99, "w.pth", "mini", "because 99 images are few"),
        (100, "w.pth", "tiny", "because 100 images are few"),
        (299, "", "tiny", "because 299 images are few"),
        (300, "", "tiny", "because it starts from random weights"),
        (300, "w.pth", "small", "larger sizes are for 1000 and more"),
        (1000, "w.pth", "large", "the largest that fits"),
        (1000, "", "tiny", "because it starts from random weights"),
        (5000, "", "tiny", "larger sizes need --weights"),
        (5000, "w.pth", "large", "the largest that fits"),
        (8, "https://there/dinat_base_in1k_224.pth", "base", "the size of dinat_base_in1k_224.pth"),
        (8, "mask2former_dinat_large_coco_panoptic.safetensors", "large", "the size of mask2former_dinat_large"),
    ],
)
def test_size_follows_from_images_and_weights(images, weights, size, reason, tmp_path):
    made = recipe(tmp_path, Machine(80, 1, 8), weights=weights, images=images, pixels=(64, 64))
    assert made.size == size
    assert any(line.startswith(f"- DiNAT-{size.title()}") and reason in line for line in made.lines())
    assert recipe(tmp_path, Machine(80, 1, 8), "base", weights, images=images).size == "base"


def test_memory_still_limits_the_size(tmp_path):
    made = recipe(tmp_path, Machine(5, 1, 8), images=2000, pixels=(512, 512))
    assert made.size != "large" and any("the largest that fits" in line for line in made.lines())


@pytest.mark.parametrize("size", SIZES)
def test_size_of_weights_is_read_from_the_file(size, tmp_path):
    backbone = BACKBONES[size]
    state = {
        f"backbone.levels.{level}.blocks.{block}.norm1.weight": torch.zeros(backbone["EMBED_DIM"] << level)
        for level, depth in enumerate(backbone["DEPTHS"])
        for block in range(depth)
    }
    torch.save({"model": state}, tmp_path / "mine.pth")
    assert size_of_weights(str(tmp_path / "mine.pth"), BACKBONES) == size
    (tmp_path / "mine.pth").write_bytes(b"damaged")
    assert size_of_weights(str(tmp_path / "mine.pth"), BACKBONES) is None
    assert size_of_weights(f"dinat_{size}_in1k_224.pth", BACKBONES) == size


def test_batch_is_divided_evenly_over_gpus_and_steps(tmp_path):
    for gpus in (1, 2, 3, 8):
        values = recipe(tmp_path, Machine(24, gpus, 16), pixels=(1024, 1024)).values
        batch = values["SOLVER.IMS_PER_BATCH"] * values["SOLVER.ACCUMULATE_STEPS"]
        assert values["SOLVER.IMS_PER_BATCH"] % gpus == 0
        assert batch == (18 if gpus == 3 else 16)
    few = recipe(tmp_path, images=3).values
    assert few["SOLVER.IMS_PER_BATCH"] * few["SOLVER.ACCUMULATE_STEPS"] == 3
    assert (few["SOLVER.BASE_LR"], few["SOLVER.LR_REFERENCE_BATCH"]) == (1e-4, 16)


def test_sizes_come_from_the_images(tmp_path):
    jitter = recipe(tmp_path, pixels=(480, 640)).values
    assert (jitter["INPUT.IMAGE_SIZE"], jitter["INPUT.MIN_SIZE_TEST"]) == (640, 480)
    large = recipe(tmp_path, pixels=(3000, 4000)).values
    assert (large["INPUT.IMAGE_SIZE"], large["INPUT.MIN_SIZE_TEST"]) == (1024, 768)
    crop = recipe(tmp_path, format="semantic", pixels=(1000, 2000)).values
    assert crop["INPUT.CROP.SIZE"] == [992, 992]
    assert (crop["INPUT.MIN_SIZE_TRAIN"][0], crop["INPUT.MIN_SIZE_TRAIN"][-1]) == (496, 1984)
    assert recipe(tmp_path, Machine(0, 1, 8), pixels=(3000, 4000)).values["INPUT.IMAGE_SIZE"] == 256


def test_a_gpu_that_is_too_small_gets_smaller_images_or_a_clear_no(tmp_path):
    shrunk = recipe(tmp_path, Machine(4, 1, 8), pixels=(1024, 1024))
    assert (shrunk.size, shrunk.values["INPUT.IMAGE_SIZE"]) == ("mini", 768)
    with pytest.raises(RecipeError, match="--gpu-memory 1: too little"):
        recipe(tmp_path, Machine(1, 1, 8))


def test_tasks_and_queries(tmp_path):
    def switches(values):
        return [values[f"MODEL.MASK_FORMER.TEST.{task}_ON"] for task in ("PANOPTIC", "INSTANCE", "SEMANTIC")]

    assert switches(recipe(tmp_path).values) == [False, True, False]
    assert switches(recipe(tmp_path, format="coco_panoptic").values) == [True, True, True]
    assert switches(recipe(tmp_path, format="coco_panoptic", things=0).values) == [True, False, True]
    assert switches(recipe(tmp_path, format="semantic").values) == [False, False, True]
    counts = {
        most: recipe(tmp_path, segments=most).values["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] for most in (5, 70, 240)
    }
    assert counts == {5: 100, 70: 200, 240: 500}


def test_dilated_windows_fit_the_maps():
    assert fitting_dilations(BACKBONES["large"], 1024) == BACKBONES["large"]["DILATIONS"]
    for size in SIZES:
        kernels = BACKBONES[size].get("KERNEL_SIZES") or [BACKBONES[size]["KERNEL_SIZE"]] * 4
        for side in (64, 256, 512):
            found = fitting_dilations(BACKBONES[size], side)
            assert [len(level) for level in found] == BACKBONES[size]["DEPTHS"]
            for level, kernel, stride in zip(found, kernels, (4, 8, 16, 32), strict=True):
                assert all(d == 1 or d * kernel <= side // stride for d in level)


def test_void_is_left_out_of_the_losses_where_there_is_any(tmp_path):
    data = inspection(tmp_path, format="semantic")
    key = "MODEL.MASK_FORMER.IGNORE_VOID"
    assert key not in make_recipe(data, GPU_24, BACKBONES).values
    scan = replace(data.train.scans[0], pixels=Counter({0: 480 * 320}))
    half = Inspection({"train": replace(data.train, scans=(scan,) * 1000)}, {})
    made = make_recipe(half, GPU_24, BACKBONES)
    assert made.values[key] is True
    assert any(line.startswith("- 50.0% of the pixels have no class") for line in made.lines())


@pytest.mark.parametrize("size", SIZES)
def test_config_can_be_read_and_holds_the_reasons(size, tmp_path, registered):
    machine = GPU_24 if size != "pico" else Machine(0, 1, 2)
    made = recipe(tmp_path, machine, size, images=40)
    folder = tmp_path / "project"
    categories = (Category(1, "Füchse", (1, 2, 3), True), Category(2, "b: c", (4, 5, 6), True))
    near = {"images": tmp_path / "images", "annotations": folder / "data/train.json"}
    far = {"images": ROOT, "annotations": ROOT / "none.json"}
    datasets = {
        "train": CustomDataset("ours_train", "coco_instance", categories, near),
        "val": CustomDataset("ours_val", "coco_instance", categories, far),
    }
    write_config(folder / "config.yaml", made, datasets, BASES, "tools/dataset.py config ...")
    text = (folder / "config.yaml").read_text()
    assert text.startswith("# Written by: tools/dataset.py config ...\n#\n# - ")
    entries = yaml.safe_load(text)["DATASETS"]["CUSTOM"]
    assert (entries[0]["images"], entries[0]["annotations"]) == ("../images", "data/train.json")
    assert entries[1]["images"] == str(ROOT)
    cfg = setup_cfg(folder / "config.yaml")
    assert [entry["name"] for entry in register_custom_datasets(cfg.DATASETS.CUSTOM, folder)] == [
        "ours_train",
        "ours_val",
    ]
    assert BACKBONES[size]["EMBED_DIM"] == cfg.MODEL.DINAT.EMBED_DIM
    assert cfg.MODEL.WEIGHTS == "w.pth"
    for key, value in made.values.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert (list(node) if isinstance(node, tuple) else node) == value
