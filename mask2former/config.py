"""Every configuration key that this project adds to Detectron2's, and the one way to read a config file.

Defaults are those of the published Mask2Former models (Cheng et al., "Masked-attention Mask Transformer for
Universal Image Segmentation", CVPR 2022, sections 3 and 4.1); what a data set or a backbone needs stands in `configs/`.
"""

import difflib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from yaml.constructor import ConstructorError

from mask2former.utils.errors import ConfigError

__all__ = ["ENTRY_POINTS", "ConfigError", "add_maskformer2_config", "setup_cfg"]

# Entry points of this group are functions that add a backbone's keys to a config.
ENTRY_POINTS = "mask2former.config"


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former to `cfg`, in place (those of a backbone are added by the backbone's package)."""
    # WarmupPolyLR, the class-balanced crop and several published keys come with Detectron2's DeepLab project.
    add_deeplab_config(cfg)
    # Data sets of your own: a list of dicts, see mask2former/data/datasets/custom.py; tools/dataset.py writes it.
    cfg.DATASETS.CUSTOM = []
    _add_input_keys(cfg)
    _add_solver_keys(cfg)
    _add_head_keys(cfg)
    _add_mask_former_keys(cfg)
    # Predict in bfloat16 autocast; SOLVER.AMP.ENABLED is for training.
    cfg.TEST.AMP = False
    # Where a training keeps its best weights (model_best.pth) by a metric of its evaluations, such as panoptic_seg/PQ,
    # sem_seg/mIoU or validation/total_loss: which.
    cfg.TEST.BEST_METRIC = ""
    # Compute the losses of DATASETS.TEST at each evaluation in a training, on at most so many images; draw losses.png.
    cfg.TEST.VALIDATION_LOSS = False
    cfg.TEST.VALIDATION_IMAGES = 100
    # Run backbone and head through torch.compile. Compiling takes minutes, again for other sizes of images.
    cfg.MODEL.COMPILE = False


def _add_input_keys(cfg: CfgNode) -> None:
    # One of the five training inputs: mask_former_{semantic,panoptic,instance}, coco_{instance,panoptic}_lsj.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Colour augmentation of SSD, in the pipelines that are not large-scale jittering.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Large-scale jittering: side of the square crop, and the range of the scale drawn.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # Pad training images to a multiple of this; -1: do not.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Forget segments that cropping left without a pixel; published runs keep them (except coco_instance_lsj).
    cfg.INPUT.DROP_EMPTY_TARGETS = False


def _add_solver_keys(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone, relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Weight decay of relative position biases; None: WEIGHT_DECAY, as in the published runs.
    cfg.SOLVER.WEIGHT_DECAY_RPB = None
    # Batches of an optimiser step, for what fits into memory: the step is that of one batch of IMS_PER_BATCH times
    # ACCUMULATE_STEPS images. Iterations are optimiser steps everywhere.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # The images a step that BASE_LR is meant for; it is scaled in proportion to those there are. 0: taken as it is.
    cfg.SOLVER.LR_REFERENCE_BATCH = 0
    # Evaluate, and save as model_final_ema.pth, an exponential moving average of the weights, of which an iteration
    # keeps DECAY (less in the beginning).
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9999


def _add_head_keys(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    # Channels of the per-pixel embedding that queries are compared with.
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 6
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # How deformable attention is computed: auto, gather (CPU), triton (CUDA) or reference; see `ms_deform_attn`.
    head.DEFORMABLE_ATTENTION_BACKEND = "auto"


def _add_mask_former_keys(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER = CfgNode()
    node = cfg.MODEL.MASK_FORMER

    # Transformer decoder. DEC_LAYERS counts predictions: that many minus one layers, and the one before them.
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # What the decoder reads. Only "multi_scale_pixel_decoder" exists here; the key is part of published files.
    node.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    node.NUM_OBJECT_QUERIES = 200
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.DEC_LAYERS = 10
    # Layers of MaskFormer's plain encoder, which Mask2Former has not: 0 is the only value; part of published files.
    node.ENC_LAYERS = 0
    node.DROPOUT = 0.0
    node.PRE_NORM = False
    # Project the pixel decoder's maps even where their width is HIDDEN_DIM already.
    node.ENFORCE_INPUT_PROJ = False
    # Images are padded to a multiple of this before the backbone.
    node.SIZE_DIVISIBILITY = 32

    # Losses.
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    # Mask losses look at this many points of a mask: OVERSAMPLE_RATIO times as many are drawn,
    # IMPORTANCE_SAMPLE_RATIO of them are the most uncertain of these, the rest are uniform.
    node.TRAIN_NUM_POINTS = 12544
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Mask losses and matching costs skip void pixels and crowds; published runs take them for background.
    node.IGNORE_VOID = False

    # Inference.
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.8
    node.TEST.OVERLAP_THRESHOLD = 0.8
    # Resize masks to the requested size before class maps are made (always so where instance or panoptic is on).
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def setup_cfg(
    config_file: str | Path,
    opts: Sequence[str] = (),
    extend: Iterable[Callable[[CfgNode], None]] | None = None,
) -> CfgNode:
    """Read a config file and its `_BASE_` files (safe YAML), then apply `KEY VALUE` overrides.

    Args:
        config_file: YAML with the keys that differ from the defaults.
        opts: keys and values in turn.
        extend: functions that add keys to the config, one per backbone package. None: those that the installed
            packages name under the entry-point group `mask2former.config`; loading one also registers its backbone.

    Returns:
        The config, not frozen.

    Raises:
        ConfigError: a missing file, YAML that is broken or unsafe, an unknown key, a value of a wrong type.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    for add_keys in load_extensions() if extend is None else extend:
        add_keys(cfg)
    loaded = _load_yaml(config_file)
    if loaded.get("VERSION", cfg.VERSION) != cfg.VERSION:
        raise ConfigError(f"{config_file}: VERSION is {loaded['VERSION']}, expected {cfg.VERSION}")
    _check_known(loaded, cfg, source=str(config_file))
    try:
        cfg.merge_from_other_cfg(CfgNode(loaded))
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{config_file}: {error}") from error
    _merge_opts(cfg, list(opts))
    return cfg


def load_extensions() -> list[Callable[[CfgNode], None]]:
    """Functions of the entry-point group `mask2former.config`, which add keys; loading one registers its backbone.

    Raises:
        ConfigError: A package of the group can't be imported.
    """
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return [_load(entry) for entry in sorted(entries, key=lambda entry: entry.name)]


def _load(entry: importlib.metadata.EntryPoint) -> Callable[[CfgNode], None]:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{ENTRY_POINTS} {entry.name!r} ({entry.value}) can't be loaded: {error}") from error


def _load_yaml(config_file: str | Path) -> dict[str, Any]:
    try:
        loaded = CfgNode.load_yaml_with_base(str(config_file), allow_unsafe=False)
    except FileNotFoundError as error:
        missing = error.filename or config_file
        role = "" if str(missing) == str(config_file) else f" (a _BASE_ of {config_file})"
        raise ConfigError(f"config file not found: {missing}{role}") from error
    except ConstructorError as error:
        raise ConfigError(f"{config_file}: only safe YAML is read; {error.problem} ({error.problem_mark})") from error
    except (yaml.YAMLError, IsADirectoryError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"{config_file}: not a YAML config file: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{config_file}: expected a mapping of keys, found {type(loaded).__name__}")
    return loaded


def _flat_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_known(loaded: dict[str, Any], cfg: CfgNode, source: str) -> None:
    known = set(_flat_keys(cfg))
    # EXPECTED_RESULTS and the like are leaves; an empty section of a file adds nothing.
    unknown = [key for key in _flat_keys(loaded) if key not in known and not _is_section(cfg, key)]
    if unknown:
        lines = [f"  {key}{_suggestion(key, known)}" for key in unknown]
        if any(key.startswith("MODEL.") and key.split(".")[1] not in cfg.MODEL for key in unknown):
            lines.append(f"Keys of a backbone come with its package, by entry point {ENTRY_POINTS!r}: is it installed?")
        raise ConfigError(f"{source}: unknown config key{'s' if len(unknown) > 1 else ''}:\n" + "\n".join(lines))


def _is_section(cfg: CfgNode, key: str) -> bool:
    node = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return isinstance(node, CfgNode)


def _suggestion(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ConfigError(f"overrides are pairs KEY VALUE; {opts[-1]!r} has no value")
    known = set(_flat_keys(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise ConfigError(f"command line: unknown config key {key}{_suggestion(key, known)}")
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"command line: {key} {value}: {error}") from error
