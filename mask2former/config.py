"""All configuration keys that this project adds to Detectron2's, and the reading of config files.

The defaults are those of the published Mask2Former models (Cheng et al., "Masked-attention Mask Transformer for
Universal Image Segmentation", CVPR 2022, sections 3 and 4.1). Settings of data sets and backbones are in `configs/`.
"""

import difflib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from dinat_common.errors import ConfigError
from mask2former.utils.config_values import fit_value
from mask2former.utils.yaml_files import ConfigFile, read_config_file

__all__ = ["ENTRY_POINTS", "ConfigError", "add_maskformer2_config", "flatten", "load_extensions", "setup_cfg"]

# Group of entry points that are functions which add a backbone's keys to a config.
ENTRY_POINTS = "mask2former.config"
_LOG = logging.getLogger(__name__)
_UPERNET = ("PixelClassifier",)
_SEGMENTERS = ("MaskFormer", "PixelClassifier")
_MASK_HEAD = (
    *("MASK_DIM", "PIXEL_DECODER_NAME", "TRANSFORMER_ENC_LAYERS", "DEFORMABLE_ATTENTION_BACKEND"),
    *(f"DEFORMABLE_TRANSFORMER_ENCODER_{name}" for name in ("IN_FEATURES", "N_HEADS", "N_POINTS")),
)
_DETECTOR = (
    *("RPN", "ANCHOR_GENERATOR", "PROPOSAL_GENERATOR"),
    *("ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD"),
)
# The only meta-architectures that read a section or key. Of several beginnings of a key, the longest counts.
READ_BY: Mapping[str, tuple[str, ...]] = {
    "INPUT.CLASSIFICATION": ("ImageClassifier",),
    "MODEL.CLASSIFIER": ("ImageClassifier",),
    "MODEL.MASK_FORMER": ("MaskFormer",),
    "MODEL.PIXEL_CLASSIFIER": _UPERNET,
    "MODEL.AUXILIARY_HEAD": _UPERNET,
    "MODEL.SEM_SEG_HEAD": _SEGMENTERS,
    **{f"MODEL.SEM_SEG_HEAD.{key}": ("MaskFormer",) for key in _MASK_HEAD},
    **{f"MODEL.SEM_SEG_HEAD.{key}": _UPERNET for key in ("POOL_SIZES", "DROPOUT")},
    **{f"MODEL.{section}": ("MaskRCNN",) for section in _DETECTOR},
}


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former to `cfg` in place; a backbone's package adds the keys of the backbone."""
    # WarmupPolyLR, the class-balanced crop and several published keys come from Detectron2's DeepLab project.
    add_deeplab_config(cfg)
    # Your own data sets: a list of dicts, described in mask2former/data/datasets/custom.py. tools/dataset.py writes it.
    cfg.DATASETS.CUSTOM = []
    _add_input_keys(cfg)
    _add_solver_keys(cfg)
    _add_head_keys(cfg)
    _add_mask_former_keys(cfg)
    _add_detection_keys(cfg)
    _add_classifier_keys(cfg)
    _add_pixel_classifier_keys(cfg)
    # Predict in bfloat16 autocast; SOLVER.AMP.ENABLED is for training.
    cfg.TEST.AMP = False
    # Number of images that a process predicts at a time. Other models than classifiers pad them to a common size.
    cfg.TEST.IMS_PER_BATCH = 1
    # Metric whose best weights a training keeps as model_best.pth, for example panoptic_seg/PQ, sem_seg/mIoU or
    # validation/total_loss. Empty: none.
    cfg.TEST.BEST_METRIC = ""
    # Compute the losses on at most VALIDATION_IMAGES images of DATASETS.TEST at each evaluation during a training, and
    # draw losses.png.
    cfg.TEST.VALIDATION_LOSS = False
    cfg.TEST.VALIDATION_IMAGES = 100
    # Run backbone and head through torch.compile. Compilation takes minutes, once for each image size.
    cfg.MODEL.COMPILE = False


def _add_input_keys(cfg: CfgNode) -> None:
    # One of seven training inputs: mask_former_{semantic,panoptic,instance}, coco_{instance,panoptic}_lsj,
    # mask_rcnn_instance of detectors and image_classification.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Values that become 0 and 255 in images with more than 8 bits, such as (0, 4095) for 12 bits. Empty: 16-bit values
    # are divided by 257, and images without a fixed range (floating point, 32 bits) are refused.
    cfg.INPUT.VALUE_RANGE = ()
    # Resizing of images for tests and in the mask_former_* inputs: pillow (Detectron2's rule), or opencv (the rule of
    # models trained with OpenMMLab's libraries, such as the published UPerNets and detectors).
    cfg.INPUT.RESIZE_WITH = "pillow"
    # Colour augmentation of SSD, in the mask_former_* inputs.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Large-scale jittering: side of the square crop, and range of the random scale.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # Lengths of the shortest edge to choose from before the crop of mask_rcnn_instance, which one of two images gets.
    cfg.INPUT.CROP.SHORT_EDGES = (400, 500, 600)
    # Pad training images to a multiple of this number; -1: no padding.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Classifiers: side of the input, and the part of the shorter side of a resized image that evaluation keeps.
    cfg.INPUT.CLASSIFICATION = node = CfgNode()
    node.SIZE = 224
    node.CROP_PCT = 0.875
    # Classifiers, training, all by timm: area and ratio of random crops; bilinear, bicubic or random (one of these for
    # each image); timm's description of RandAugment (empty: none).
    node.SCALE = (0.08, 1.0)
    node.RATIO = (3 / 4, 4 / 3)
    node.INTERPOLATION = "random"
    node.RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
    # Probability that a region of an image becomes noise.
    node.ERASING = 0.25
    # Parameters of the beta distributions of mixup and CutMix (0: not used), probabilities that a batch is mixed, and
    # that it is by CutMix.
    node.MIXUP = 0.8
    node.CUTMIX = 1.0
    node.MIX_PROB = 1.0
    node.MIX_SWITCH_PROB = 0.5
    # Drop segments that cropping left without a pixel. Published runs keep them (except coco_instance_lsj).
    cfg.INPUT.DROP_EMPTY_TARGETS = False


def _add_solver_keys(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone, relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Weight decay of relative position biases; None: WEIGHT_DECAY, as in the published runs.
    cfg.SOLVER.WEIGHT_DECAY_RPB = None
    # Weight decay of batch norms; None: WEIGHT_DECAY_NORM.
    cfg.SOLVER.WEIGHT_DECAY_BATCH_NORM = None
    # Parameters without weight decay: "1-D" for those with one dimension, and patterns of names such as "*.bias". If
    # there are any, the keys WEIGHT_DECAY_NORM, _BATCH_NORM, _EMBED and _RPB have no effect.
    cfg.SOLVER.WEIGHT_DECAY_EXEMPT = ()
    # Factor of the learning rate from each block of the backbone to the one before; 1: all have the same rate.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Length of the training in epochs, which replaces MAX_ITER (0: it does not). The epochs of the warm-up replace
    # WARMUP_ITERS; those at the end with the lowest rate follow EPOCHS and replace COOLDOWN_ITERS.
    cfg.SOLVER.EPOCHS = 0
    cfg.SOLVER.WARMUP_EPOCHS = 0
    cfg.SOLVER.COOLDOWN_EPOCHS = 0
    # CosineCooldownLR: iterations at the end of MAX_ITER with the rate BASE_LR_END.
    cfg.SOLVER.COOLDOWN_ITERS = 0
    # Number of batches of an optimiser step, if memory is short: the step is that of one batch of IMS_PER_BATCH times
    # ACCUMULATE_STEPS images. Iterations always count optimiser steps.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Number of images per step that BASE_LR is for; the rate is scaled in proportion to the actual number. 0: not.
    cfg.SOLVER.LR_REFERENCE_BATCH = 0
    # Evaluate an exponential moving average of the weights and save it as model_final_ema.pth. Each iteration keeps
    # the fraction DECAY of the average (less at the beginning).
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9999


def _add_head_keys(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    # Channels of the per-pixel embedding, with which queries are compared.
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 6
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # Backend of deformable attention: auto, gather (CPU), triton (CUDA) or reference; see `ms_deform_attn`.
    head.DEFORMABLE_ATTENTION_BACKEND = "auto"


def _add_detection_keys(cfg: CfgNode) -> None:
    # Backbone under the feature pyramid of `build_dinat_fpn_backbone`. MaskRCNN builds the pyramid over
    # MODEL.BACKBONE.NAME and does not read this key.
    cfg.MODEL.FPN.BOTTOM_UP = "D2DiNAT"
    # Weights of the losses of the stages of CascadeMaskRCNNHeads.
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS = (1.0, 0.5, 0.25)


def _add_mask_former_keys(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER = CfgNode()
    node = cfg.MODEL.MASK_FORMER

    # Transformer decoder. DEC_LAYERS is the number of predictions, one more than the number of layers.
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Input of the decoder. Published files have this key; "multi_scale_pixel_decoder" is its only value.
    node.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    node.NUM_OBJECT_QUERIES = 200
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.DEC_LAYERS = 10
    # Number of layers of MaskFormer's plain encoder, which Mask2Former does not use. Published files have this key;
    # 0 is its only value.
    node.ENC_LAYERS = 0
    node.DROPOUT = 0.0
    node.PRE_NORM = False
    # Project the pixel decoder's maps even if they have HIDDEN_DIM channels already.
    node.ENFORCE_INPUT_PROJ = False
    # Images are padded to a multiple of this number before the backbone.
    node.SIZE_DIVISIBILITY = 32

    # Losses.
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    # Mask losses are computed at TRAIN_NUM_POINTS points of a mask. OVERSAMPLE_RATIO times as many are drawn; the
    # fraction IMPORTANCE_SAMPLE_RATIO is chosen as the most uncertain of these, the rest is uniform.
    node.TRAIN_NUM_POINTS = 12544
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Exclude void pixels and crowds from mask losses and matching costs. Published runs treat them as background.
    node.IGNORE_VOID = False

    # Inference.
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.8
    node.TEST.OVERLAP_THRESHOLD = 0.8
    # Resize masks to the requested size before class maps are made (always the case if instance or panoptic is on).
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_classifier_keys(cfg: CfgNode) -> None:
    cfg.MODEL.CLASSIFIER = CfgNode()
    node = cfg.MODEL.CLASSIFIER
    node.NUM_CLASSES = 1000
    # Share of a target that is spread evenly over all classes.
    node.LABEL_SMOOTHING = 0.1


def _add_pixel_classifier_keys(cfg: CfgNode) -> None:
    """Add the keys of UPerNet; they are read by the meta-architecture PixelClassifier and its heads."""
    head = cfg.MODEL.SEM_SEG_HEAD
    # UPerNetHead: numbers of bins per axis that the coarsest map is averaged over, and dropout before the classes.
    head.POOL_SIZES = [1, 2, 3, 6]
    head.DROPOUT = 0.1
    # Head of an auxiliary loss; prediction does without it. Empty: none.
    cfg.MODEL.AUXILIARY_HEAD = CfgNode()
    node = cfg.MODEL.AUXILIARY_HEAD
    node.NAME = "FCNHead"
    node.IN_FEATURES = ["res4"]
    node.CONVS_DIM = 256
    node.NUM_CONVS = 1
    node.NORM = "SyncBN"
    node.DROPOUT = 0.1
    node.LOSS_WEIGHT = 0.4
    cfg.MODEL.PIXEL_CLASSIFIER = CfgNode()
    node = cfg.MODEL.PIXEL_CLASSIFIER
    # Training images are padded to a multiple of this number, with zeros after the normalisation; 0: only to the size
    # of the largest.
    node.SIZE_DIVISIBILITY = 0
    # Predict in windows of this height and width, which start at multiples of the stride; logits are averaged where
    # windows overlap. Empty: whole images, as published.
    node.WINDOW_SIZE = []
    node.WINDOW_STRIDE = []


def setup_cfg(
    config_file: str | Path,
    opts: Sequence[str] = (),
    extend: Iterable[Callable[[CfgNode], None]] | None = None,
) -> CfgNode:
    """Read a config file and its `_BASE_` files (safe YAML), then apply `KEY VALUE` overrides.

    Keys of the file itself and of `opts` that the model does not read are named in a warning.

    Args:
        config_file: YAML file with the keys that differ from the defaults.
        opts: Alternating keys and values, which are texts as on a command line, or have the type of the key.
        extend: Functions that add keys to the config, one per backbone package; by default those of `load_extensions`.

    Returns:
        The config, not frozen.

    Raises:
        ConfigError: The file is missing, its YAML is invalid or unsafe, a key is unknown or repeated, or a value has a
            wrong type. The message names the file and the key.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    for add_keys in load_extensions() if extend is None else extend:
        add_keys(cfg)
    known = cfg.clone()
    loaded = read_config_file(config_file)
    version = loaded.values.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise ConfigError(f"{loaded.origins['VERSION']}: VERSION is {version}, expected {cfg.VERSION}")
    _check_known(loaded, cfg)
    _merge_file(cfg, loaded.values, loaded.origins)
    _merge_opts(cfg, known, list(opts))
    _warn_of_other_models(cfg, known, loaded, Path(config_file), opts)
    # No shell has expanded these if they are in a file or follow an equals sign.
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = (os.path.expanduser(path) for path in (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR))
    return cfg


def load_extensions() -> list[Callable[[CfgNode], None]]:
    """Import the functions that installed packages name under the entry-point group `mask2former.config`.

    The import also registers the backbones of these packages.

    Raises:
        ConfigError: A function can't be imported.
    """
    functions = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            functions.append(entry.load())
        except (ImportError, AttributeError) as error:  # noqa: PERF203 - the message names the entry
            raise ConfigError(f"{ENTRY_POINTS} {entry.name!r} ({entry.value}) can't be loaded: {error}") from error
    return functions


def require_maps(key: str, names: Collection[str], known: Collection[str]) -> None:
    """Check the value of a key that names maps of a backbone or of the pyramid over it.

    Args:
        key: Key of the config, for the message.
        names: Its value.
        known: Names of the maps that there are.

    Raises:
        ConfigError: The value is empty or names a map that there is not.
    """
    if not names or set(names) - set(known):
        raise ConfigError(f"{key} is {list(names)}, expected maps of the backbone: {', '.join(known)}")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a config by their full keys, such as SOLVER.BASE_LR; an empty section is a value."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _check_known(loaded: ConfigFile, cfg: CfgNode) -> None:
    known = set(flatten(cfg))
    # An empty section of a file adds nothing.
    unknown = [key for key in flatten(loaded.values) if not _leads_to_key(cfg, key)]
    if not unknown:
        return
    source = loaded.origins[unknown[0]]
    unknown = [key for key in unknown if loaded.origins[key] == source]
    lines = [f"  {key}{_suggestion(key, known)}" for key in unknown]
    if any(key.startswith("MODEL.") and key.split(".")[1] not in cfg.MODEL for key in unknown):
        lines.append(
            f"The package of a backbone adds its keys through the entry point {ENTRY_POINTS!r}: is it installed?"
        )
    raise ConfigError(f"{source}: unknown config key{'s' if len(unknown) > 1 else ''}:\n" + "\n".join(lines))


def _leads_to_key(cfg: CfgNode, key: str) -> bool:
    """Whether a key is one of the config, or has one as its beginning, which is an error of another kind."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode):
            return True
        if part not in node:
            return False
        node = node[part]
    return True


def _suggestion(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _merge_file(cfg: CfgNode, values: Mapping[str, Any], origins: Mapping[str, Path], prefix: str = "") -> None:
    for name, value in values.items():
        key = prefix + name
        source, default = origins[key], cfg.get(name)
        if "." in name:
            raise ConfigError(f"{source}: {key}: write one section per part of the key, each in a line of its own")
        if isinstance(default, CfgNode):
            if isinstance(value, dict):
                _merge_file(default, value, origins, f"{key}.")
            elif value is not None:
                raise ConfigError(f"{source}: {key} is {_short(value)}, expected a section with keys of its own")
            continue
        try:
            cfg[name] = fit_value(value, default)
        except ValueError as error:
            raise ConfigError(f"{source}: {key} is {_short(value)}, {error}") from error


def _merge_opts(cfg: CfgNode, defaults: CfgNode, opts: list[Any]) -> None:
    if len(opts) % 2:
        raise ConfigError(f"overrides are pairs KEY VALUE; {opts[-1]!r} has no value")
    known = flatten(defaults)
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            if isinstance(key, str) and key.partition("=")[0] in known:
                raise ConfigError(f"command line: {key}: write KEY VALUE with a space instead of the equals sign")
            raise ConfigError(f"command line: unknown config key {key}{_suggestion(str(key), set(known))}")
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        try:
            node[name] = fit_value(value, known[key])
        except ValueError as error:
            raise ConfigError(f"command line: {key} {_short(value)}: {error}") from error


def _warn_of_other_models(
    cfg: CfgNode, defaults: CfgNode, loaded: ConfigFile, config_file: Path, opts: Sequence[str]
) -> None:
    model, values, before = cfg.MODEL.META_ARCHITECTURE, flatten(cfg), flatten(defaults)
    if not any(model in readers for readers in READ_BY.values()):
        return
    written = flatten(loaded.values)
    # A file with all keys is the record of a run, not what a user wrote.
    own = () if before.keys() <= written.keys() else (key for key in written if loaded.origins[key] == config_file)
    for key in dict.fromkeys([*own, *opts[::2]]):
        section = max((each for each in READ_BY if f"{key}.".startswith(f"{each}.")), key=len, default="")
        if section and model not in READ_BY[section] and values.get(key) != before.get(key):
            _warn_once(f"{key} has no effect: MODEL.META_ARCHITECTURE is {model}, which does not read it")


@cache
def _warn_once(message: str) -> None:
    # Of the processes of a launcher, the first one speaks.
    if os.environ.get("RANK", "0") == "0":
        _LOG.warning("%s", message)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
