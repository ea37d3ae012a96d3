"""A model of every kind, shrunk so that it runs in a moment: what command lines, Python and the page are tested with.

A meta-architecture of `tasks.ARCHITECTURES` without a row fails `tests/prediction/test_every_kind.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mask2former.tasks import Task
from tests.conftest import ROOT, config_path
from tests.tiny import TINY

_BACKBONE = (
    "MODEL.DEVICE cpu MODEL.DINAT.EMBED_DIM 32 MODEL.DINAT.DEPTHS [1,1,1,1] "
    "MODEL.DINAT.NUM_HEADS [1,2,4,8] MODEL.DINAT.DILATIONS [[1],[1],[1],[1]] MODEL.DINAT.KERNEL_SIZE 3 "
)
_DETECTOR = (
    f"{_BACKBONE} MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.CONV_DIM 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 "
    "MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 20 "
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 6 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 128"
)
_UPERNET = (
    f"{_BACKBONE} MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.AUXILIARY_HEAD.CONVS_DIM 16 INPUT.MIN_SIZE_TEST 64 "
    "INPUT.MAX_SIZE_TEST 256 TEST.AUG.MIN_SIZES [32,64] TEST.AUG.MAX_SIZE 256"
)
_CLASSIFIER = f"{_BACKBONE} INPUT.CLASSIFICATION.SIZE 64"


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: Its key in `KINDS`.
        architecture: Its meta-architecture, a key of `tasks.ARCHITECTURES`.
        config: A published config.
        opts: Config keys that shrink it.
        task: Task of its results.
        dataset: Data set of the miniature trees that it is evaluated on.
        metrics: Names of its metrics, by task of `metrics.json`.
        augmented: Whether TEST.AUG.ENABLED is possible.
    """

    name: str
    architecture: str
    config: Path
    opts: tuple[str, ...]
    task: Task
    dataset: str
    metrics: Mapping[str, str]
    augmented: bool = False

    @property
    def command(self) -> list[str]:
        """Options of a command line: the config."""
        return ["--config-file", str(self.config)]


_CONFIGS = ROOT / "configs"
_ALL = (
    Kind(
        "mask2former",
        "MaskFormer",
        config_path("coco-panoptic"),
        (*TINY[2:], "TEST.AUG.MIN_SIZES", "[32,64]", "TEST.AUG.MAX_SIZE", "128"),
        "panoptic",
        "coco_2017_val_panoptic_with_sem_seg",
        {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"},
        augmented=True,
    ),
    Kind(
        "mask-rcnn",
        "MaskRCNN",
        _CONFIGS / "coco/detection/nat/nat_mini_maskrcnn.yaml",
        tuple(_DETECTOR.split()),
        "instance",
        "coco_2017_val",
        {"bbox": "AP", "segm": "AP"},
    ),
    Kind(
        "cascade",
        "MaskRCNN",
        _CONFIGS / "coco/detection/dinat_s/cascadedmaskrcnn_dinat_s_tiny.yaml",
        tuple(_DETECTOR.split()),
        "instance",
        "coco_2017_val",
        {"bbox": "AP", "segm": "AP"},
    ),
    Kind(
        "upernet",
        "PixelClassifier",
        _CONFIGS / "ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml",
        tuple(_UPERNET.split()),
        "semantic",
        "ade20k_sem_seg_val",
        {"sem_seg": "mIoU"},
        augmented=True,
    ),
    Kind(
        "classifier",
        "ImageClassifier",
        _CONFIGS / "imagenet/classification/nat/nat_mini.yaml",
        tuple(_CLASSIFIER.split()),
        "classification",
        "imagenet_val",
        {"classification": "top1"},
    ),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ALL}
