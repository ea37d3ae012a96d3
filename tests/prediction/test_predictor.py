import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from mask2former import ConfigError, Predictor, setup_cfg
from mask2former.data.image_io import ImageReadError
from mask2former.engine import DeviceError
from tests.conftest import config_path
from tests.data.custom.conftest import registered  # noqa: F401 - a fixture
from tests.tiny import TINY

METADATA = Metadata(
    name="toy",
    thing_classes=["cat", "sky"],
    stuff_classes=["cat", "sky"],
    thing_dataset_id_to_contiguous_id={17: 0},
    stuff_dataset_id_to_contiguous_id={187: 1},
)


class Recorder(nn.Module):
    """Stands for a model: remembers its input and finds one thing in the left half and stuff in the right one."""

    panoptic_on = instance_on = semantic_on = True
    object_mask_threshold = 0.8

    def __init__(self, largest_batch=100):
        super().__init__()
        self.batches = []
        self.largest_batch = largest_batch

    def forward(self, batched_inputs):
        if len(batched_inputs) > self.largest_batch:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(batched_inputs))
        self.seen = batched_inputs[-1]
        return [self.output(inputs["height"], inputs["width"]) for inputs in batched_inputs]

    def output(self, height, width):
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
        return {"panoptic_seg": (panoptic, info), "sem_seg": torch.stack([left, ~left]).float(), "instances": instances}


def predictor(task, model=None, **options):
    return Predictor(model or Recorder(), METADATA, task, resize=ResizeShortestEdge(32, 64), **options)


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
    assert prediction.draw().shape == (20 * 16, 40 * 16, 3)
    assert prediction.size == (20, 40)


def test_instances_are_the_confident_ones_best_first():
    predict = predictor("instance")
    segments = predict(IMAGE).segments()
    assert [segment["score"] for segment in segments] == pytest.approx([0.9, 0.7])
    assert [segment["category_name"] for segment in segments] == ["cat", "sky"]
    assert len(predict(IMAGE, confidence_threshold=0.3).segments()) == 3
    assert predictor("instance", confidence_threshold=0.95)(IMAGE).segments() == []


def test_segments_say_what_and_where():
    for task in ("panoptic", "semantic"):
        thing, stuff = predictor(task)(IMAGE).segments()
        assert (thing["category_name"], thing["isthing"], thing["bbox"]) == ("cat", True, [0, 0, 20, 20])
        assert (stuff["category_name"], stuff["isthing"], stuff["bbox"]) == ("sky", False, [20, 0, 20, 20])


def test_a_list_gives_a_list_and_images_of_one_size_share_a_batch(tmp_path):
    model = Recorder()
    predict = predictor("panoptic", model)
    turned = np.zeros((40, 20, 3), np.uint8)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    images = [IMAGE, turned, Image.fromarray(IMAGE), str(tmp_path / "a.png"), IMAGE[:, :, 0], tmp_path / "a.png"]
    results = predict(images, batch_size=3)
    assert [result.size for result in results] == [(20, 40), (40, 20), (20, 40), (20, 40), (20, 40), (20, 40)]
    assert sorted(model.batches) == [1, 2, 3]
    assert np.array_equal(results[3].image, IMAGE)
    model.batches.clear()
    assert predict([]) == []
    predict([IMAGE, IMAGE])
    assert model.batches == [1, 1], "a CPU takes one at a time"


def test_a_batch_that_does_not_fit_is_halved():
    model = Recorder(largest_batch=2)
    assert len(predictor("panoptic", model)([IMAGE] * 5, batch_size=5)) == 5
    assert model.batches == [2, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        predictor("panoptic", Recorder(largest_batch=0))(IMAGE)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"nowhere\.jpg: no such file"):
        predictor("panoptic")([IMAGE, tmp_path / "nowhere.jpg"])
    with pytest.raises(ImageReadError, match=r"float64 \[20, 40, 3\]: expected uint8"):
        predictor("panoptic")(IMAGE / 255)


@pytest.mark.parametrize(
    ("asked", "on"),
    [("panoptic", ["panoptic"]), ("semantic", ["semantic"]), ("instance", ["panoptic", "instance"])],
)
def test_a_task_switches_the_outputs_on_that_it_needs(asked, on):
    predict = predictor(None)
    assert predict.task == "panoptic" and predict.tasks == ("panoptic", "instance", "semantic")
    assert predict(IMAGE, task=asked).task == asked
    switches = {name: getattr(predict.model, f"{name}_on") for name in ("panoptic", "instance", "semantic")}
    assert [name for name, value in switches.items() if value] == on


def test_the_default_is_the_richest_task_of_the_model():
    model = Recorder()
    model.panoptic_on = False
    predict = predictor(None, model)
    assert predict(IMAGE).task == predict.task == "instance"
    assert not model.panoptic_on, "an instance model has no stuff to keep out"


def test_the_threshold_of_segments_is_that_of_the_call_then_the_predictor_then_the_config():
    predict = predictor("panoptic", confidence_threshold=0.6)
    for options, threshold in [({}, 0.6), ({"confidence_threshold": 0.3}, 0.3), ({}, 0.6)]:
        predict(IMAGE, **options)
        assert predict.model.object_mask_threshold == threshold
    other = predictor("instance", confidence_threshold=0.6)
    other(IMAGE, task="panoptic")
    assert other.model.object_mask_threshold == Recorder.object_mask_threshold


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="task instance: the classes of sky allow semantic"):
        Predictor(
            Recorder(), Metadata(name="sky", stuff_classes=["sky"]), "instance", resize=ResizeShortestEdge(32, 64)
        )
    with pytest.raises(ConfigError, match=r"1\.5"):
        predictor("panoptic", confidence_threshold=1.5)
    with pytest.raises(ConfigError, match="no confidence threshold"):
        predictor("panoptic")(IMAGE, task="semantic", confidence_threshold=0.5)


@pytest.fixture(scope="module")
def tiny():
    return Predictor.from_config(config_path("coco-panoptic"), "", TINY)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_batch_gives_what_single_images_give(tiny, task):
    images = [np.random.default_rng(seed).integers(0, 256, (48, 80, 3), dtype=np.uint8) for seed in range(3)]
    options = {} if task == "semantic" else {"confidence_threshold": 0.0}
    together = tiny(images, task=task, batch_size=3, **options)
    alone = [tiny(image, task=task, **options) for image in images]
    for a, b in zip(together, alone, strict=True):
        # Sums are ordered differently, which can turn a pixel between two classes.
        assert np.mean(a.draw() != b.draw()) < 0.01
        ours, theirs = a.segments(), b.segments()
        assert ours and [s["category_id"] for s in ours] == [s["category_id"] for s in theirs]
        assert [s.get("score", 1) for s in ours] == pytest.approx([s.get("score", 1) for s in theirs], abs=1e-4)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_confidence_threshold_really_applies(tiny, task):
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    scores = [segment["score"] for segment in tiny(image, task=task, confidence_threshold=0.0).segments()]
    middle = float(np.mean(scores))
    assert min(scores) < middle < max(scores)
    segments = tiny(image, task=task, confidence_threshold=middle).segments()
    assert segments and all(segment["score"] >= middle for segment in segments)
    assert len(tiny(image, task=task, confidence_threshold=1.0).segments()) == 0


def test_the_device_is_that_of_the_call_then_of_the_options_then_what_there_is(monkeypatch):
    opts = [*TINY[: TINY.index("MODEL.DEVICE")], *TINY[TINY.index("MODEL.DEVICE") + 2 :]]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = config_path("coco-panoptic")
    assert Predictor.from_config(config, "", opts).device.type == "cpu"
    assert Predictor.from_config(config, "", opts, "cpu").device.type == "cpu"
    for arguments in ((opts, "cuda"), ([*opts, "MODEL.DEVICE", "cuda"],)):
        with pytest.raises(DeviceError, match="no GPU"):
            Predictor.from_config(config, "", *arguments)


def test_classes_of_a_data_set_that_the_config_describes(tmp_path, registered):  # noqa: F811
    """Neither its pictures nor its labels are there."""
    file = tmp_path / "own.yaml"
    file.write_text(f"""
_BASE_: {config_path("ade20k-semantic")}
DATASETS:
  CUSTOM: [{{name: own_val, format: semantic, images: nowhere, labels: nowhere, classes: [moss, lichen]}}]
  TRAIN: [own_val]
  TEST: [own_val]
MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: 2}}}}
""")
    predict = Predictor.from_config(file, "", TINY)
    assert predict.tasks == ("semantic",) and list(predict.classes().names) == ["moss", "lichen"]
    assert {segment["category_name"] for segment in predict(IMAGE).segments()} <= {"moss", "lichen"}


def test_a_config_that_names_no_data_set_is_an_error(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("MODEL: {DEVICE: cpu}")
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST is empty"):
        Predictor.from_cfg(setup_cfg(file))
