"""One small model of each architecture, on drawn images: config file, settings, and what a training of it measures."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from mask2former import setup_cfg
from mask2former.engine import Trainer, TrainLoop
from tests.conftest import ROOT, load_script
from tests.tiny import TINY

SIZE = 64
BACKBONE = (
    "MODEL.DEVICE cpu MODEL.DINAT.DEPTHS [1,1,1,1] MODEL.DINAT.DILATIONS [[1],[1],[1],[1]] "
    "MODEL.DINAT.KERNEL_SIZES [3,3,3,3] DATALOADER.NUM_WORKERS 0 SEED 1 SOLVER.STEPS [] SOLVER.WARMUP_ITERS 1 "
    "INPUT.MIN_SIZE_TRAIN (64,) SOLVER.IMS_PER_BATCH 2 INPUT.CROP.SIZE (64,64) INPUT.IMAGE_SIZE 64 "
    "INPUT.MIN_SIZE_TEST 64"
).split()
DETECTOR = (
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.CONV_DIM 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 "
    "MODEL.ROI_BOX_HEAD.NUM_CONV 1 MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.ROI_MASK_HEAD.NUM_CONV 1 "
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN 30 "
    "MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "TEST.DETECTIONS_PER_IMAGE 5"
).split()
# All anchors and regions are trained, as many of each image, so that nothing depends on chance or on other images:
# only the targets themselves are positive.
EVERYTHING = (
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE 1100 MODEL.RPN.NMS_THRESH 1.0 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64 "
    "MODEL.ROI_HEADS.IOU_THRESHOLDS [0.99] MODEL.ROI_BOX_CASCADE_HEAD.IOUS (0.99,0.99,0.99)"
).split()


@dataclass(frozen=True)
class SmallModel:
    """A model.

    Attributes:
        config: Config file in configs/shapes.
        opts: Config keys that make it small.
        metrics: Metrics of its tasks, the first of which is taken for the best checkpoint.
        not_random: Config keys with which losses do not depend on chance.
    """

    config: str
    opts: tuple[str, ...]
    metrics: tuple[str, ...]
    not_random: tuple[str, ...] = ()

    def cfg(self, *opts: object) -> CfgNode:
        """Config with further keys."""
        return setup_cfg(ROOT / "configs/shapes" / self.config, [*BACKBONE, *self.opts, *map(str, opts)])


MODELS = {
    "mask2former": SmallModel(
        "panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml",
        tuple(word.strip("'") for word in TINY),
        ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"),
    ),
    "mask-rcnn": SmallModel(
        "detection/dinat/maskrcnn_dinat_pico_shapes.yaml",
        tuple(DETECTOR),
        ("bbox/AP", "segm/AP"),
        tuple(EVERYTHING),
    ),
    "cascade": SmallModel(
        "detection/dinat/cascadedmaskrcnn_dinat_pico_shapes.yaml",
        tuple(DETECTOR),
        ("segm/AP", "bbox/AP"),
        tuple(EVERYTHING),
    ),
    "upernet": SmallModel(
        "semantic-segmentation/dinat/upernet_dinat_pico_shapes.yaml",
        (
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.AUXILIARY_HEAD.CONVS_DIM", "32"),
            *("MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY", "64"),
        ),
        ("sem_seg/mIoU",),
        ("MODEL.SEM_SEG_HEAD.DROPOUT", "0.0", "MODEL.AUXILIARY_HEAD.DROPOUT", "0.0"),
    ),
    "classifier": SmallModel(
        "classification/dinat_pico.yaml",
        ("INPUT.CLASSIFICATION.SIZE", "64", "SOLVER.EPOCHS", "0", "TEST.IMS_PER_BATCH", "2"),
        ("classification/top1",),
    ),
}


def drawn_data(root):
    """Draw the images that these models are trained and evaluated on, into a folder for DETECTRON2_DATASETS."""
    script = load_script("datasets/prepare_shapes.py")
    script.prepare(root, train=4, val=3, size=SIZE)
    script.prepare_classes(root, train=10, val=11, size=SIZE)


def inputs(name, targets, seed=0):
    """Training inputs of a model with these numbers of targets: rectangles in noise."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index, count in enumerate(targets):
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        inputs = {"image": image, "file_name": f"{seed}-{index}.png"}
        corners = torch.randint(0, SIZE // 2, (count, 2), generator=generator)
        boxes = torch.cat([corners, corners + torch.randint(8, SIZE // 2, (count, 2), generator=generator)], 1)
        x, y = torch.arange(SIZE), torch.arange(SIZE)[:, None]
        masks = [(x >= x0) & (x < x1) & (y >= y0) & (y < y1) for x0, y0, x1, y1 in boxes.tolist()]
        instances = Instances((SIZE, SIZE), gt_classes=torch.randperm(4, generator=generator)[:count])
        instances.gt_masks = torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
        if name in ("mask-rcnn", "cascade"):
            instances.gt_boxes, instances.gt_masks = Boxes(boxes.float()), BitMasks(instances.gt_masks)
        target = {"label": count % 4} if name == "classifier" else {"instances": instances}
        found.append(inputs | target)
    return found


def step(cfg, batches):
    """Take a step of plain gradient descent on the images of all batches; returns weights before and after, and losses.

    In several processes, losses are those of all of them on the first one.
    """
    torch.manual_seed(3)
    model = Trainer.build_model(cfg)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    parallel = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    loop = TrainLoop(parallel, batches, optimizer, accumulate_steps=len(batches), seed=1)
    with EventStorage() as storage:
        loop.iter = 0
        loop.run_step()
    losses = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
    return before, model.state_dict(), losses


def require_equal_steps(before, after, other, tolerance=1e-3):
    """Check that two steps from the same weights are equal up to rounding in float32."""
    for key, start in before.items():
        if start.is_floating_point():
            first, second = after[key] - start, other[key] - start
            assert (first - second).norm() <= tolerance * first.norm() + 1e-6, key
        else:
            assert after[key] == other[key], key
