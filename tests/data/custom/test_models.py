"""Own images with every kind of model: config, training, evaluation and prediction for each format that it can use."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mask2former import Predictor, setup_cfg
from mask2former.checkpoint import Checkpointer, CheckpointMismatchError, build_empty_state, to_openmmlab
from mask2former.data.coco_format import encode_rle, encode_runs
from mask2former.data.custom.class_list import SourceError
from mask2former.data.custom.model_size import PICO, Machine, RecipeError
from mask2former.data.custom.models import MODELS, check_model, serving
from mask2former.data.custom.recipe import make_recipe
from mask2former.data.datasets import register_custom_datasets
from mask2former.engine import Trainer
from mask2former.tasks import ARCHITECTURES, class_count
from tests.conftest import ROOT, load_script

from .conftest import NAMES, draw_all, scene, write
from .conftest import registered as registered
from .test_recipe import inspection

tool = load_script("tools/dataset.py")
BASES = ROOT / "configs/_base_"
THINGS = list(NAMES[2:])
FORMATS = {
    "coco_instance": "--annotations instances.json",
    "coco_panoptic": "--annotations panoptic.json --panoptic panoptic",
    "semantic": "--labels labels --classes classes.txt",
    "semantic_instance": "--labels labels --instances instances --classes classes.txt",
}
# Format, model, the format of the written entry, and metrics.
RUNS = [
    ("coco_instance", "mask-rcnn", "coco_instance", ("bbox", "segm")),
    ("coco_instance", "cascade", "coco_instance", ("bbox", "segm")),
    ("coco_panoptic", "mask-rcnn", "coco_instance", ("bbox", "segm")),
    ("coco_panoptic", "upernet", "coco_panoptic", ("sem_seg",)),
    ("semantic", "upernet", "semantic", ("sem_seg",)),
    ("semantic_instance", "cascade", "coco_instance", ("bbox", "segm")),
    ("semantic_instance", "upernet", "coco_panoptic", ("sem_seg",)),
]
# A training that learns nothing, in a moment.
QUICK = (
    "SOLVER.MAX_ITER 2 SOLVER.STEPS [] SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATE_STEPS 1 TEST.EVAL_PERIOD 0 SEED 1 "
    "SOLVER.WARMUP_ITERS 1 DATALOADER.NUM_WORKERS 0 MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ROI_BOX_HEAD.CONV_DIM 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 "
    "MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.SEM_SEG_HEAD.CONVS_DIM 16"
).split()
# Detections with any score.
ANY_SCORE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"]


def roughen(root):
    """Add what real annotations have: crowds, run lengths, no or empty objects, no boxes, and unlabelled pixels."""
    content = json.loads((root / "instances.json").read_text())
    first, *others = content["images"]
    mask = np.zeros((first["height"], first["width"]), bool)
    mask[5:15, 5:20] = True
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != others[0]["id"]]
    of_first = {"image_id": first["id"], "category_id": 5}
    content["annotations"] += [
        {**of_first, "id": 9001, "segmentation": encode_rle(mask)},
        {**of_first, "id": 9002, "segmentation": encode_runs(mask), "iscrowd": 1, "bbox": [5, 5, 15, 10], "area": 150},
        {**of_first, "id": 9003, "segmentation": [[7, 7, 9, 7, 11, 7]], "bbox": [7, 7, 4, 0], "area": 0},
        {**of_first, "id": 9004, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "ignore": 1},
    ]
    write(root / "instances.json", content)
    for path in sorted((root / "labels").iterdir())[:2]:
        labels = np.array(Image.open(path))
        labels[:6] = 255
        Image.fromarray(labels).save(path)
    # An image of nothing else.
    Image.fromarray(np.full_like(labels, 255)).save(path)
    return root


def words(root, format):
    listed = f"--images images {FORMATS[format]} --workers 1".split()
    return [str(root / word) if (root / word).exists() else word for word in listed]


@pytest.mark.usefixtures("registered", "loggers_restored")
@pytest.mark.parametrize(("format", "model", "written", "metrics"), RUNS, ids=lambda value: str(value))
def test_every_format_trains_every_model_that_can_use_it(format, model, written, metrics, tmp_path, capsys):
    root, run = roughen(draw_all(tmp_path / "data", 5)), tmp_path / "run"
    options = [*words(root, format), "--gpu-memory", "0", "--output", str(run), "--model", model]
    assert tool.main(["config", *options]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert f"- no GPU: DiNAT-Pico with a small {MODELS[model].head}" in printed
    assert model in next(line for line in printed.splitlines() if line.startswith("models: "))

    train_net = load_script("train_net.py")
    cfg = train_net.get_config(run / "config.yaml")
    assert [entry["format"] for entry in cfg.DATASETS.CUSTOM] == [written] * 2
    assert MODELS[model].architecture == cfg.MODEL.META_ARCHITECTURE
    names = THINGS if metrics[0] == "bbox" else list(NAMES)
    assert class_count(cfg) == len(names)
    config, training = ["--config-file", str(run / "config.yaml")], tmp_path / "training"
    train_net.run([*config, *QUICK, *ANY_SCORE, "OUTPUT_DIR", str(training)])
    (measured,) = json.loads((training / "inference/metrics.json").read_text()).values()
    assert tuple(measured) == metrics

    # The copy of the config and the weights are sufficient afterwards.
    root.rename(tmp_path / "gone")
    threshold = 0.0 if metrics[0] == "bbox" else None
    weights = training / "model_final.pth"
    predictor = Predictor.from_config(training / "config.yaml", weights, confidence_threshold=threshold)
    found = predictor(scene(7)[0])
    assert list(found.classes.names) == names
    assert {segment["category_name"] for segment in found.segments()} <= set(names)
    assert found.segments()


@pytest.mark.parametrize(
    ("format", "model", "reason"),
    [
        ("semantic", "mask-rcnn", "needs things with masks.*semantic is for --model mask2former or upernet"),
        ("semantic", "cascade", "Cascade Mask R-CNN needs things with masks"),
        ("coco_instance", "upernet", "needs a class per pixel.*is for --model mask2former or mask-rcnn or cascade"),
        *(("class_folders", model, "class folders train a classifier of whole images") for model in MODELS),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(format, model, reason):
    with pytest.raises(SourceError, match=reason) as refused:
        check_model(model, format)
    assert "\n" not in str(refused.value)
    assert model not in serving(format, things=True)


def test_a_refused_command_line_ends_with_2_before_anything_is_read(tmp_path, capsys):
    root = draw_all(tmp_path / "data", 2)
    (root / "labels/000.png").write_bytes(b"damaged")
    options = [*words(root, "semantic"), "--gpu-memory", "0", "--output", str(tmp_path / "run"), "--model", "mask-rcnn"]
    with pytest.raises(SystemExit) as stop:
        tool.main(["config", *options])
    assert stop.value.code == 2 and "--model mask-rcnn: Mask R-CNN needs things" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["mask-rcnn", "cascade"])
def test_a_detector_needs_a_thing(model, tmp_path):
    data, backbones = inspection(tmp_path, "coco_panoptic", things=0), MODELS[model].backbones(BASES)
    assert [*serving("coco_panoptic", things=False)] == ["mask2former", "upernet"]
    with pytest.raises(RecipeError, match=f"--model {model}: no image of train has an annotated thing"):
        make_recipe(data, Machine(24, 1, 8), backbones, model=model)


# Models and families of backbones with a published config for each size.
PUBLISHED = [(model, family) for model, spec in MODELS.items() for family in spec.configs]


@pytest.mark.parametrize(("model", "family"), PUBLISHED)
def test_recipes_are_configs_of_the_model(model, family, tmp_path):
    spec, data = MODELS[model], inspection(tmp_path, "coco_panoptic", images=200, pixels=(600, 800))
    backbones = spec.backbones(BASES, family)
    assert len(backbones) > 2
    for size in backbones:
        weights = f"{family}_{size}_in1k_224.pth"
        made = make_recipe(data, Machine(80, 2, 8), backbones, None if size != PICO else PICO, weights, model)
        assert made.size == size
        path = tmp_path / "config.yaml"
        bases = [str((BASES / base).resolve()) for base in made.bases]
        nested: dict = {"_BASE_": bases}
        for key, value in made.values.items():
            *sections, last = key.split(".")
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
        path.write_text(yaml.safe_dump(nested))
        cfg = setup_cfg(path)
        assert spec.architecture == cfg.MODEL.META_ARCHITECTURE
        assert class_count(cfg) == (2 if spec.tasks == ("instance",) else 3)
        assert spec.mappers["panoptic"] == cfg.INPUT.DATASET_MAPPER_NAME
        assert weights == cfg.MODEL.WEIGHTS and backbones[size]["EMBED_DIM"] == cfg.MODEL.DINAT.EMBED_DIM
        assert spec.least_batch <= cfg.SOLVER.IMS_PER_BATCH // 2
        if model != "mask2former" and size != PICO:
            # The published rate, for the published batch.
            assert "SOLVER.BASE_LR" not in made.values and cfg.SOLVER.LR_REFERENCE_BATCH == 16
            assert cfg.SOLVER.WARMUP_ITERS <= cfg.SOLVER.MAX_ITER // 10


def test_a_family_is_that_of_the_weights():
    names = {
        "nat_mini_maskrcnn.pth": "nat",
        "https://there/cascadedmaskrcnn_dinat_s_tiny.pth": "dinat_s",
        "maskrcnn_dinat_small.pth": "dinat",
        "nat_base.pth": "nat",
        "model_final.pth": "dinat",
    }
    assert {name: MODELS["cascade"].family_of(name) for name in names} == names
    assert {MODELS["mask2former"].family_of(name) for name in names} == {"dinat"}


def test_sizes_that_a_model_does_not_have_are_refused(tmp_path):
    data, backbones = inspection(tmp_path), MODELS["mask-rcnn"].backbones(BASES)
    assert [*backbones] == ["small", "tiny", "mini", PICO]
    for size, weights, reason in (("large", "", "as requested"), (None, "dinat_large_in22k_224.pth", "the size of")):
        with pytest.raises(
            RecipeError, match=f"size large, {reason}.*this model comes in small, tiny, mini, pico only"
        ):
            make_recipe(data, Machine(24, 1, 8), backbones, size, weights, "mask-rcnn")
    # DiNATs has no Mini.
    backbones = MODELS["mask-rcnn"].backbones(BASES, "dinat_s")
    assert make_recipe(inspection(tmp_path, images=5), Machine(24, 1, 8), backbones, model="mask-rcnn").size == "tiny"


def test_published_sizes_and_lengths(tmp_path):
    """The settings of COCO and ADE20K for data like them."""
    data = inspection(tmp_path, images=118287, pixels=(800, 1067))
    values = make_recipe(data, Machine(80, 1, 8), MODELS["cascade"].backbones(BASES), "small", "w", "cascade").values
    assert values["INPUT.MIN_SIZE_TEST"] == pytest.approx(800, rel=0.05)
    scale = values["INPUT.MIN_SIZE_TEST"] / 800
    assert values["INPUT.MIN_SIZE_TRAIN"] == [round(scale * side) for side in range(480, 801, 32)]
    assert values["INPUT.CROP.SIZE"] == [round(scale * 384), round(scale * 600)]
    assert values["SOLVER.MAX_ITER"] == pytest.approx(263880, rel=0.01)
    assert values["SOLVER.STEPS"] == pytest.approx([197910, 241890], rel=0.01)
    data = inspection(tmp_path, "semantic", images=20210, pixels=(512, 683))
    values = make_recipe(data, Machine(80, 1, 8), MODELS["upernet"].backbones(BASES), "small", "w", "upernet").values
    assert values["INPUT.CROP.SIZE"] == [512, 512] and values["MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY"] == 512
    assert values["SOLVER.MAX_ITER"] == pytest.approx(160000, rel=0.01) and "SOLVER.STEPS" not in values
    assert not any("MASK_FORMER" in key for key in values)


def published_file(model, path, classes):
    """A file as OpenMMLab's libraries wrote it, of the small model with another number of classes."""
    cfg = setup_cfg(
        BASES / MODELS[model].small_configs[0], [ARCHITECTURES[MODELS[model].architecture].classes, classes]
    )
    cfg.MODEL.DEVICE, names = "cpu", build_empty_state(cfg)
    torch.manual_seed(0)
    state = {name: torch.rand(value.shape) if value.is_floating_point() else value for name, value in names.items()}
    state = {name: torch.zeros((), dtype=torch.int64) if value.is_meta else value for name, value in state.items()}
    torch.save({"meta": {"CLASSES": ()}, "state_dict": to_openmmlab(state)}, path)
    return state


# Weights whose rows belong to classes.
CLASS_LAYERS = {
    "mask-rcnn": [f"roi_heads.{layer}" for layer in ("box_predictor.0.cls_score", "box_predictor.0.bbox_pred")]
    + ["roi_heads.mask_head.0.predictor"],
    "cascade": [
        f"roi_heads.{layer}"
        for stage in range(3)
        for layer in (
            f"box_predictor.{stage}.cls_score",
            f"box_predictor.{stage}.bbox_pred",
            f"mask_head.{stage}.predictor",
        )
    ],
    "upernet": ["sem_seg_head.conv_seg", "auxiliary_head.conv_seg"],
}


@pytest.mark.usefixtures("registered", "loggers_restored")
@pytest.mark.parametrize(("model", "classes"), [("mask-rcnn", 80), ("cascade", 80), ("upernet", 150)])
def test_a_published_model_of_other_classes_starts_a_training(model, classes, tmp_path, caplog):
    """The class layers alone are replaced, which one line tells; an evaluation refuses the file."""
    root, run = draw_all(tmp_path / "data", 4), tmp_path / "run"
    given = published_file(model, tmp_path / "published.pth", classes)
    options = [*words(root, "coco_panoptic"), "--gpu-memory", "0", "--output", str(run), "--model", model]
    assert tool.main(["config", *options, "--weights", str(tmp_path / "published.pth")]) == 0
    cfg = setup_cfg(run / "config.yaml")
    register_custom_datasets(cfg.DATASETS.CUSTOM, run)
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "cpu", 0
    trainer = Trainer(cfg)
    with caplog.at_level("INFO"):
        trainer.resume_or_load(resume=False)
    (line,) = [text for text in caplog.messages if "classes, the model has" in text]
    assert f"has {classes} classes, the model has {class_count(cfg)}: only the class " in line
    report = trainer.checkpointer.report
    replaced = {f"{layer}.{kind}" for layer in CLASS_LAYERS[model] for kind in ("weight", "bias")}
    assert report.reinitialised.keys() == replaced and report.exact
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], given[name]) for name in report.loaded)
    with pytest.raises(CheckpointMismatchError, match=f"The checkpoint has {classes} classes, .* can't be evaluated"):
        Checkpointer(trainer.model).load(str(tmp_path / "published.pth"))
