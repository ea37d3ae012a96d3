import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from mask2former.config import add_maskformer2_config
from mask2former.evaluation import (
    BoxAP,
    EvaluationError,
    InstanceAP,
    PanopticQuality,
    SemanticIoU,
    build_evaluator,
    json_ready,
    results_table,
)


def config(*tasks):
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    for task in ("PANOPTIC", "INSTANCE", "SEMANTIC"):
        cfg.MODEL.MASK_FORMER.TEST[f"{task}_ON"] = task in tasks
    return cfg


def kinds(cfg, dataset):
    return [type(metric) for metric in build_evaluator(cfg, dataset.name, None).metrics]


def test_outputs_that_are_on_and_have_ground_truth_are_evaluated(dataset):
    assert kinds(config("PANOPTIC", "INSTANCE", "SEMANTIC"), dataset) == [
        PanopticQuality,
        InstanceAP,
        SemanticIoU,
    ]
    assert kinds(config("PANOPTIC"), dataset) == [PanopticQuality]
    metadata = vars(MetadataCatalog.get(dataset.name))
    del metadata["json_file"]
    assert kinds(config("PANOPTIC", "INSTANCE"), dataset) == [PanopticQuality]
    metadata["evaluator_type"] = "sem_seg"
    assert kinds(config("PANOPTIC", "SEMANTIC"), dataset) == [SemanticIoU]
    metadata["evaluator_type"] = "coco"
    with pytest.raises(EvaluationError, match=r"evaluated_in_a_test.*INSTANCE_ON"):
        build_evaluator(config("INSTANCE"), dataset.name, None)


def test_boxes_are_measured_of_models_that_predict_them(dataset):
    cfg = config("PANOPTIC", "SEMANTIC")
    cfg.MODEL.META_ARCHITECTURE = "MaskRCNN"
    assert kinds(cfg, dataset) == [BoxAP, InstanceAP]
    vars(MetadataCatalog.get(dataset.name))["evaluator_type"] = "sem_seg"
    with pytest.raises(EvaluationError, match="can't be evaluated: MaskRCNN predicts instance"):
        build_evaluator(cfg, dataset.name, None)


def test_an_unknown_kind_of_data_set_is_told_the_known_ones(dataset):
    vars(MetadataCatalog.get(dataset.name))["evaluator_type"] = "lvis"
    with pytest.raises(EvaluationError, match=r"'lvis' is unknown; known are cityscapes_instance, .*, coco, .*sem_seg"):
        build_evaluator(config("SEMANTIC"), dataset.name, None)


def test_the_table_has_each_metric_but_those_of_single_classes():
    table = results_table("somewhere", {"segm": {"AP": 12.34567, "APs": float("nan"), "AP-cat": 1.0}})
    assert "somewhere" in table
    assert [line.split() for line in table.splitlines()[3:]] == [
        ["|", "segm", "|", "AP", "|", "12.3457", "|"],
        ["|", "segm", "|", "APs", "|", "nan", "|"],
    ]


def test_numbers_that_json_lacks_become_null():
    assert json_ready({"a": {"b": float("nan"), "c": 1}}) == {"a": {"b": None, "c": 1.0}}
