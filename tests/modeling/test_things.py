"""What is a thing is decided by the metadata of the data set, whatever tasks are switched on."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.data.classes import ClassTable
from mask2former.export.network import describe
from mask2former.prediction import Predictor
from mask2former.tasks import possible_tasks
from mask2former.test_time_augmentation import ModelWithTTA
from tests.conftest import config_path
from tests.tiny import TINY

NAMES = ["cat", "dog", "sky", "sea"]
BOTH = {"thing_classes": NAMES, "stuff_classes": NAMES}
# Metadata, ids of their things, and the tasks that they allow.
KINDS = {
    "things and stuff": (
        BOTH | {"thing_dataset_id_to_contiguous_id": {3: 0, 7: 1}, "stuff_dataset_id_to_contiguous_id": {9: 2, 11: 3}},
        {0, 1},
        ("panoptic", "instance", "semantic"),
    ),
    "stuff first": (
        BOTH | {"thing_dataset_id_to_contiguous_id": {24: 2, 26: 3}, "stuff_dataset_id_to_contiguous_id": {7: 0, 8: 1}},
        {2, 3},
        ("panoptic", "instance", "semantic"),
    ),
    "no things": (
        BOTH | {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {1: 0, 2: 1, 3: 2, 4: 3}},
        set(),
        ("panoptic", "semantic"),
    ),
    "no stuff": (
        BOTH | {"thing_dataset_id_to_contiguous_id": {1: 0, 2: 1, 3: 2, 4: 3}, "stuff_dataset_id_to_contiguous_id": {}},
        {0, 1, 2, 3},
        ("panoptic", "instance", "semantic"),
    ),
    "instances": (
        {"thing_classes": NAMES, "thing_dataset_id_to_contiguous_id": {24: 0, 25: 1, 32: 2, 33: 3}},
        {0, 1, 2, 3},
        ("instance",),
    ),
    "names of instances": ({"thing_classes": NAMES}, {0, 1, 2, 3}, ("instance",)),
    "pixels": ({"stuff_classes": NAMES}, set(), ("semantic",)),
}
SWITCHES = ["PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"]


@pytest.fixture(params=KINDS)
def kind(request):
    """Name of a registered data set, ids of its things, and the tasks that it allows."""
    metadata, things, tasks = KINDS[request.param]
    name = "things_in_a_test"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(**metadata)
    yield name, things, tasks
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def config(name, *switched_on):
    cfg = setup_cfg(config_path("coco-panoptic"), [*TINY, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (64,), 128
    for switch in SWITCHES:
        cfg.MODEL.MASK_FORMER.TEST[switch] = switch in switched_on
    return cfg


@pytest.mark.parametrize("switched_on", [SWITCHES, ["INSTANCE_ON"]])
def test_stuff_is_never_an_instance(kind, switched_on):
    """In the results of the model, with test-time augmentation, and as an exported model describes its classes."""
    name, things, _ = kind
    cfg = config(name, *switched_on)
    model = build_model(cfg).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}]
    with torch.no_grad():
        plain, augmented = model(inputs)[0], ModelWithTTA(cfg, model)(inputs)[0]
    for result in (plain, augmented):
        assert set(result["instances"].pred_classes.tolist()) == things, "of 8 queries and 4 classes, all are kept"
        for segment in result["panoptic_seg"][1] if "PANOPTIC_ON" in switched_on else []:
            assert segment["isthing"] == (segment["category_id"] in things)
    metadata = MetadataCatalog.get(name)
    described = describe(cfg, model, metadata, "none")["classes"]
    assert {i for i, entry in enumerate(described) if entry["isthing"]} == things
    assert [entry["name"] for entry in described] == NAMES


def test_tasks_and_objects_of_a_predictor(kind):
    name, things, tasks = kind
    assert possible_tasks(MetadataCatalog.get(name)) == tasks
    predict = Predictor.from_cfg(config(name, *SWITCHES))
    assert predict.tasks == tasks and predict.task == tasks[0]
    image = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8).numpy()
    for task in tasks:
        segments = predict(image, task=task, confidence_threshold=None if task == "semantic" else 0.0).segments()
        assert {s["category_id"] for s in segments if s["isthing"]} <= things
        assert {s["category_id"] for s in segments if not s["isthing"]} & things == set()
        assert task != "instance" or {s["category_id"] for s in segments} == things
        assert ClassTable.from_metadata(MetadataCatalog.get(name), task).thing_ids == things
