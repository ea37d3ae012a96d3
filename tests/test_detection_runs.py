"""Detectors from the outside: training, evaluation, prediction and export on COCO's layout in miniature."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import train_net
from mask2former import Predictor, setup_cfg
from mask2former.checkpoint import to_openmmlab
from mask2former.data import build_train_mapper
from mask2former.data.dataset_mapper import TestMapper
from mask2former.data.resizing import build_test_resize
from mask2former.engine import Trainer
from mask2former.prediction import InstancePrediction

from .conftest import ROOT

FOLDER = ROOT / "configs" / "coco" / "detection"
HEADS = {"mask": FOLDER / "nat" / "nat_mini_maskrcnn.yaml", "cascade": FOLDER / "nat" / "nat_mini_cascademaskrcnn.yaml"}
# A detector that learns nothing, in a moment.
SHRUNK = (
    "MODEL.WEIGHTS '' MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 32 MODEL.DINAT.DEPTHS [1,1,1,1] "
    "MODEL.DINAT.NUM_HEADS [1,2,4,8] MODEL.DINAT.KERNEL_SIZE 3 MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ROI_BOX_HEAD.CONV_DIM 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 "
    "MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 128 INPUT.MIN_SIZE_TRAIN [64,96] INPUT.MAX_SIZE_TRAIN 128 "
    "INPUT.CROP.SHORT_EDGES [48,64] INPUT.CROP.SIZE [32,64] SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 "
    "SOLVER.STEPS [] SOLVER.AMP.ENABLED False DATALOADER.NUM_WORKERS 0 SEED 1 TEST.DETECTIONS_PER_IMAGE 10"
).split()
SHRUNK = [word.strip("'") for word in SHRUNK]


@pytest.fixture(autouse=True)
def _data(trees, monkeypatch, loggers_restored):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))


@pytest.fixture(params=HEADS)
def head(request):
    return request.param


def run(head, output, *words, flags=()):
    arguments = ["--config-file", str(HEADS[head]), "--num-gpus", "1", *flags, *SHRUNK, "OUTPUT_DIR", str(output)]
    train_net.run([*arguments, *words])


def metrics(output):
    return json.loads((output / "inference" / "metrics.json").read_text())["coco_2017_val"]


def test_training_and_evaluation(head, tmp_path):
    run(head, tmp_path / "a", "SOLVER.EMA.ENABLED", "True", "TEST.VALIDATION_LOSS", "True")
    losses = [json.loads(line) for line in (tmp_path / "a" / "metrics.json").read_text().splitlines()]
    names = {"loss_rpn_cls", "loss_rpn_loc"}
    ending = {"mask": [""], "cascade": [f"_stage{stage}" for stage in range(3)]}[head]
    names |= {f"loss_{kind}{end}" for kind in ("cls", "box_reg", "mask") for end in ending}
    assert names <= losses[0].keys() | losses[-1].keys()
    assert "validation/total_loss" in losses[-1]
    found = metrics(tmp_path / "a")
    assert list(found) == ["bbox", "segm"] and {"AP", "AP50", "APs", "AP-person"} <= found["bbox"].keys()
    # The published form of the same weights is evaluated alike.
    state = torch.load(tmp_path / "a" / "model_final.pth", weights_only=True)["model"]
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": to_openmmlab(state)}, tmp_path / "published.pth")
    results = {}
    for weights in (tmp_path / "a" / "model_final.pth", tmp_path / "published.pth"):
        run(head, tmp_path / weights.stem, "MODEL.WEIGHTS", str(weights), flags=["--eval-only"])
        lines = (tmp_path / weights.stem / "inference" / "coco_boxes_results.json").read_text()
        results[weights.stem] = json.loads(lines)
    assert results["model_final"] == results["published"]
    assert len(results["published"]) == 40


@pytest.fixture
def shrunk():
    """Function that builds the model of a head and its inputs."""

    def build(head, *words):
        cfg = setup_cfg(HEADS[head], [*SHRUNK, *words])
        torch.manual_seed(0)
        records = DatasetCatalog.get("coco_2017_val")[:2]
        np.random.seed(0)
        return build_model(cfg), [build_train_mapper(cfg)(record) for record in records]

    return build


def test_losses_do_not_depend_on_the_mode_and_parts_add_up(shrunk):
    model, inputs = shrunk("mask", "MODEL.DINAT.DROP_PATH_RATE", "0.0")
    with EventStorage(), torch.no_grad():
        torch.manual_seed(3)
        trained = model.train()(inputs[:1])
        torch.manual_seed(3)
        assert {k: float(v) for k, v in model.eval().losses(inputs[:1]).items()} == pytest.approx(
            {k: float(v) for k, v in trained.items()}
        )
        counts = model.count_targets(inputs)
        torch.manual_seed(3)
        part = model.losses(inputs[:1], counts)
        assert float(part["loss_mask"]) == pytest.approx(float(trained["loss_mask"]) / 2)
    assert not model.training and not model.proposal_generator.training


def test_an_image_without_anything_to_find_is_trained_and_predicted(shrunk, head):
    model, inputs = shrunk(head, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    empty = {**inputs[0], "instances": inputs[0]["instances"][:0]}
    # In bfloat16 autocast, as the published models are trained.
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([empty, inputs[1]])
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        found = model.eval()([{"image": inputs[0]["image"], "height": 30, "width": 40}])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 30, 40) and found.pred_masks.dtype == torch.bool


def test_frozen_levels_get_no_gradient(shrunk):
    model, _ = shrunk("mask", "MODEL.BACKBONE.FREEZE_AT", "3")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith("backbone.bottom_up.") for name in frozen)
    assert "backbone.bottom_up.levels.1.blocks.0.mlp.fc1.weight" in frozen


LAYERS = (("box_predictor", "cls_score"), ("box_predictor", "bbox_pred"), ("mask_head", "predictor"))


def test_another_number_of_classes_keeps_everything_but_the_class_layers(tmp_path, head):
    model = build_model(setup_cfg(HEADS[head], SHRUNK))
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    cfg = setup_cfg(HEADS[head], [*SHRUNK, "OUTPUT_DIR", str(tmp_path / "b")])
    cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 90
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    report = trainer.checkpointer.report
    stages = range(3 if head == "cascade" else 1)
    layers = [f"{x}.{s}.{y}" for s in stages for x, y in LAYERS]
    assert set(report.reinitialised) == {f"roi_heads.{n}.{k}" for n in layers for k in ("weight", "bias")}
    assert report.classes == (80, 90) and report.classes_key == "MODEL.ROI_HEADS.NUM_CLASSES"


def test_predictor_and_pictures(head, tmp_path, shrunk):
    model, inputs = shrunk(head)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    predictor = Predictor.from_config(HEADS[head], tmp_path / "a.pth", SHRUNK, confidence_threshold=0.0)
    found = predictor(inputs[0]["file_name"])
    resize = build_test_resize(setup_cfg(HEADS[head], SHRUNK))
    tested = TestMapper(T.AugmentationList([resize]))({"file_name": inputs[0]["file_name"]})
    with torch.no_grad():
        expected = model.eval()([tested])[0]["instances"]
    assert isinstance(found, InstancePrediction) and len(found.scores) == len(expected) == 10
    x0, y0, x1, y1 = expected.pred_boxes.tensor.numpy().T
    np.testing.assert_allclose(found.boxes, np.stack([x0, y0, x1 - x0, y1 - y0], axis=1), atol=1e-3)
    assert [entry["bbox"] for entry in found.to_coco(7)] == found.boxes.tolist()
    assert [entry["bbox"] for entry in found.segments()] == found.boxes.tolist()
    back = InstancePrediction.from_record(json.loads(json.dumps(found.record())), found.size, found.classes, None)
    np.testing.assert_array_equal(back.boxes, found.boxes)
    kept = found.filter(min_score=float(found.scores[3]))
    np.testing.assert_array_equal(kept.boxes, found.boxes[: len(kept.scores)])
    plain = replace(found, predicted_boxes=None)
    assert plain.boxes.dtype == np.int64
    assert (found.draw() != plain.draw()).any()
