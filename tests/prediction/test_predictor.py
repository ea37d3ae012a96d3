import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from torch import nn

from mask2former import ConfigError, Predictor, setup_cfg
from mask2former.data.image_io import ImageReadError
from mask2former.engine import DeviceError
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.inference import InferenceSettings, Queries
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


class Recorder(MaskFormer):
    """Remembers its input and finds one thing in the left half and stuff in the right one, both twice."""

    def __init__(self, largest_batch=100, tasks=("panoptic", "instance", "semantic")):
        nn.Module.__init__(self)
        self.register_buffer("pixel_mean", torch.zeros(3))
        things = frozenset({0}) if "panoptic" in tasks else None
        self.inference_settings = InferenceSettings(tasks, 0.8, 0.0, thing_ids=things, resize_masks_first=True)
        self.batches = []
        self.largest_batch = largest_batch

    def predict(self, batched_inputs):
        if len(batched_inputs) > self.largest_batch:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(batched_inputs))
        self.seen = batched_inputs[-1]
        return [self.queries(*inputs["image"].shape[-2:]) for inputs in batched_inputs]

    def queries(self, height, width):
        left = torch.full((height, width), -20.0)
        left[:, : width // 2] = 20
        # Probabilities of cat, sky and no object.
        logits = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.85, 0.05], [0.4, 0.1, 0.5]]).log()
        return Queries(logits, torch.stack([left, -left, left]), (height, width), (height, width))


def predictor(task, model=None, **options):
    return Predictor(model or Recorder(), METADATA, task, resize=ResizeShortestEdge(32, 64), **options)


IMAGE = np.zeros((20, 40, 3), dtype=np.uint8) + np.array([10, 20, 30], dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "first"), [("RGB", 10), ("BGR", 30)])
def test_the_model_sees_the_image_at_its_size_and_channel_order(image_format, first):
    predict = predictor("panoptic", image_format=image_format)
    predict(IMAGE)
    seen = predict.model.seen
    assert seen["image"].shape == (3, 32, 64) and seen["image"][0, 0, 0] == first
    assert predict(IMAGE).size == (20, 40)
    assert not predict.model.training


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_large_images_are_predicted_smaller_and_enlarged(task):
    predict = predictor(task, max_pixels=200)
    prediction = predict(IMAGE)
    assert predict.analyze(IMAGE).result_size == (10, 20)
    for segment in prediction.segments():
        assert segment["area"] == 400 and segment["segmentation"]["size"] == [20, 40]
    assert prediction.draw().shape == (20 * 16, 40 * 16, 3)
    assert prediction.size == (20, 40)


def test_instances_are_the_confident_ones_best_first():
    predict = predictor("instance", Recorder(tasks=("instance",)))
    segments = predict(IMAGE).segments()
    assert [segment["score"] for segment in segments] == pytest.approx([0.9, 0.85])
    assert [segment["category_name"] for segment in segments] == ["cat", "sky"]
    assert len(predict(IMAGE, confidence_threshold=0.3).segments()) == 3
    assert predictor("instance", confidence_threshold=0.95)(IMAGE).segments() == []


def test_instances_of_a_panoptic_model_are_things():
    segments = predictor("instance")(IMAGE, confidence_threshold=0.3).segments()
    assert [segment["category_name"] for segment in segments] == ["cat", "cat"]


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
    with pytest.raises(ImageReadError, match=r"image 2: .*float64 \[20, 40, 3\] .*: expected uint8, or floats from 0"):
        predictor("panoptic")([IMAGE, IMAGE / 2])


def test_the_default_is_the_richest_task_of_the_model():
    assert predictor(None).task == "panoptic" and predictor(None).tasks == ("panoptic", "instance", "semantic")
    predict = predictor(None, Recorder(tasks=("instance", "semantic")))
    assert predict(IMAGE).task == predict.task == "instance"


def test_the_threshold_of_segments_is_that_of_the_call_then_the_predictor_then_the_config():
    predict = predictor("panoptic", confidence_threshold=0.87)
    for options, names in [({}, ["cat"]), ({"confidence_threshold": 0.3}, ["cat", "sky"]), ({}, ["cat"])]:
        assert [segment["category_name"] for segment in predict(IMAGE, **options).segments()] == names
    other = predictor("instance", confidence_threshold=0.87)
    assert len(other(IMAGE, task="panoptic").segments()) == 2  # the config's 0.8


TASKS_AND_THRESHOLDS = [
    ("instance", 0.2), ("panoptic", 1.0), ("semantic", None), ("instance", 1.0), ("panoptic", 0.0), ("semantic", None)
]  # fmt: skip


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), slice(0, 1), slice(1, 4)])
def test_predictions_leave_model_and_predictor_as_they_were(tiny, order):
    """Whatever was predicted before: attributes, weights and results of the model are the same."""
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    inputs = [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}]

    def state():
        with torch.no_grad():
            (result,) = tiny.model(inputs)
        ids, segments = result["panoptic_seg"]
        attributes = {
            name: {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
            for name, module in tiny.model.named_modules()
        }
        return attributes, vars(tiny).copy(), ids.tolist(), segments, result["sem_seg"].sum().item()

    before = state()
    analysis = tiny.analyze(image)
    for task, threshold in TASKS_AND_THRESHOLDS[order]:
        tiny(image, task=task, confidence_threshold=threshold)
        tiny.result(analysis, task=task, confidence_threshold=threshold, overlap_threshold=0.9)
    assert state() == before


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="task instance: the classes of sky allow semantic"):
        Predictor(
            Recorder(), Metadata(name="sky", stuff_classes=["sky"]), "instance", resize=ResizeShortestEdge(32, 64)
        )
    with pytest.raises(ConfigError, match=r"1\.5"):
        predictor("panoptic", confidence_threshold=1.5)
    with pytest.raises(ConfigError, match="no confidence threshold"):
        predictor("panoptic")(IMAGE, task="semantic", confidence_threshold=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0: expected at least 1"),
        ({"batch_size": -2}, "batch size -2: expected at least 1"),
        ({"batch_size": 1.5}, r"batch size 1\.5: expected a whole number"),
        ({"batch_size": "2"}, "batch size '2': expected a whole number"),
        ({"task": "panoptc"}, "task 'panoptc': expected panoptic, instance, semantic"),
        ({"task": ""}, "task '': expected panoptic"),
        ({"task": ["panoptic"]}, "expected panoptic"),
        ({"confidence_threshold": float("nan")}, "confidence threshold nan: expected a number from 0 to 1"),
        ({"confidence_threshold": -0.1}, "confidence threshold -0.1: expected a number from 0 to 1"),
        ({"confidence_threshold": "0.5"}, "confidence threshold '0.5': expected a number from 0 to 1"),
        ({"confidence_threshold": [0.5, 0.6]}, "expected a number from 0 to 1"),
    ],
)
@pytest.mark.parametrize("images", [IMAGE, [IMAGE, IMAGE], []], ids=["one", "two", "none"])
def test_odd_arguments_are_one_line_before_the_first_image(options, message, images):
    predict = predictor("panoptic")
    with pytest.raises(ConfigError, match=message) as error:
        predict(images, **options)
    assert "\n" not in str(error.value) and predict.model.batches == []


def test_numbers_of_numpy_and_pytorch_are_numbers():
    predict = predictor("panoptic", max_pixels=np.int64(200))
    for number in (np.int64, torch.tensor):
        assert len(predict([IMAGE] * 3, batch_size=number(2), confidence_threshold=np.float32(0.86))) == 3
    assert predict.model.batches == [2, 1, 2, 1]
    for threshold in (np.float64(0.3), torch.tensor(0.3), True):
        assert isinstance(predict(IMAGE, confidence_threshold=threshold).segments(), list)
    for overlap in (float("nan"), 1.5, "0.5"):
        with pytest.raises(ConfigError, match=r"overlap threshold .*: expected a number from 0 to 1"):
            predict.result(predict.analyze(IMAGE), overlap_threshold=overlap)
    with pytest.raises(ConfigError, match="max_pixels 0"):
        predictor("panoptic", max_pixels=0)


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
