import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from torch import nn

from mask2former.config import ConfigError, setup_cfg
from mask2former.predictor import Predictor, select_task

METADATA = Metadata(
    name="toy",
    thing_classes=["cat", "sky"],
    stuff_classes=["cat", "sky"],
    thing_dataset_id_to_contiguous_id={1: 0},
    stuff_dataset_id_to_contiguous_id={2: 1},
)


class Recorder(nn.Module):
    """Stands for a model: remembers its input and finds one thing in the left half and stuff in the right one."""

    def forward(self, batched_inputs):
        (self.seen,) = batched_inputs
        height, width = self.seen["height"], self.seen["width"]
        left = torch.zeros(height, width, dtype=torch.bool)
        left[:, : width // 2] = True
        instances = Instances((height, width))
        instances.pred_masks = torch.stack([left, ~left, left])
        instances.scores = torch.tensor([0.4, 0.7, 0.9])
        instances.pred_classes = torch.tensor([0, 1, 0])
        info = [
            {"id": 1, "category_id": 0, "isthing": True, "score": 0.9},
            {"id": 2, "category_id": 1, "isthing": False, "score": 0.8},
        ]
        panoptic = torch.where(left, 1, 2).int()
        return [
            {"panoptic_seg": (panoptic, info), "sem_seg": torch.stack([left, ~left]).float(), "instances": instances}
        ]


def predictor(task, **options):
    return Predictor(Recorder(), METADATA, task, resize=ResizeShortestEdge(32, 64), **options)


IMAGE = np.zeros((20, 40, 3), dtype=np.uint8) + np.array([10, 20, 30], dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "first"), [("RGB", 10), ("BGR", 30)])
def test_the_model_sees_the_image_at_its_size_and_channel_order(image_format, first):
    predict = predictor("panoptic", image_format=image_format)
    predict(IMAGE)
    seen = predict.model.seen
    assert seen["image"].shape == (3, 32, 64) and seen["image"][0, 0, 0] == first
    assert (seen["height"], seen["width"]) == (20, 40)
    assert not predict.model.training


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_large_images_are_predicted_smaller_and_enlarged(task):
    predict = predictor(task, max_pixels=200)
    prediction = predict(IMAGE)
    assert (predict.model.seen["height"], predict.model.seen["width"]) == (10, 20)
    for segment in prediction.segments():
        assert segment["area"] == 400 and segment["segmentation"]["size"] == [20, 40]
    assert prediction.draw(IMAGE).shape == (20 * 16, 40 * 16, 3)


def test_instances_are_the_confident_ones_best_first():
    segments = predictor("instance")(IMAGE).segments()
    assert [segment["score"] for segment in segments] == pytest.approx([0.9, 0.7])
    assert [segment["category_name"] for segment in segments] == ["cat", "sky"]
    assert len(predictor("instance", instance_threshold=0.3)(IMAGE).segments()) == 3
    assert predictor("instance", instance_threshold=0.95)(IMAGE).segments() == []


def test_segments_say_what_and_where():
    for task in ("panoptic", "semantic"):
        thing, stuff = predictor(task)(IMAGE).segments()
        assert (thing["category_name"], thing["isthing"], thing["bbox"]) == ("cat", True, [0, 0, 20, 20])
        assert (stuff["category_name"], stuff["isthing"], stuff["bbox"]) == ("sky", False, [20, 0, 20, 20])


@pytest.fixture
def cfg(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("MODEL: {MASK_FORMER: {TEST: {PANOPTIC_ON: true, INSTANCE_ON: true, SEMANTIC_ON: true}}}")
    return setup_cfg(file)


def switched_on(cfg):
    test = cfg.MODEL.MASK_FORMER.TEST
    return [name for name in ("PANOPTIC", "INSTANCE", "SEMANTIC") if test[f"{name}_ON"]]


@pytest.mark.parametrize(
    ("asked", "given", "on"),
    [
        (None, "panoptic", ["PANOPTIC"]),
        ("panoptic", "panoptic", ["PANOPTIC"]),
        ("semantic", "semantic", ["SEMANTIC"]),
        ("instance", "instance", ["PANOPTIC", "INSTANCE"]),
    ],
)
def test_a_task_switches_the_outputs_on_that_it_needs(cfg, asked, given, on):
    assert select_task(cfg, METADATA, asked) == given
    assert switched_on(cfg) == on


def test_the_default_is_the_richest_task_of_the_config(cfg):
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    assert select_task(cfg, METADATA, None) == "instance"
    assert switched_on(cfg) == ["INSTANCE"], "an instance model has no stuff to keep out"


def test_a_task_that_the_classes_do_not_allow_is_an_error(cfg):
    with pytest.raises(ConfigError, match="task instance: the classes of sky allow semantic"):
        select_task(cfg, Metadata(name="sky", stuff_classes=["sky"]), "instance")
