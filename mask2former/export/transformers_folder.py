"""A model as a folder of the transformers library: `config.json`, `preprocessor_config.json`, `model.safetensors`.

`Mask2FormerForUniversalSegmentation.from_pretrained` reads it once `dinat_backbone.transformers` is imported, which
registers the backbone. transformers' Mask2Former is an implementation of its own. Its mask and class logits equal ours;
docs/timm_and_transformers.md says what else differs.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from dinat_common.errors import MissingPackageError
from mask2former.data.classes import ClassTable
from mask2former.tasks import tasks_of

from .network import ExportError, class_table

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerImageProcessor

# Files that transformers reads.
CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
FILES = (CONFIG, PROCESSOR, WEIGHTS)
# What transformers' Mask2Former can't do otherwise.
_REQUIRED: Mapping[str, Any] = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.BACKBONE.NAME": "D2DiNAT",
    "MODEL.DINAT.KERNEL_SIZES": [],
    "MODEL.DINAT.QK_SCALE": None,
    "MODEL.DINAT.REL_POS_BIAS": True,
    "MODEL.DINAT.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "INPUT.FORMAT": "RGB",
}


def build_config(cfg: CfgNode) -> "Mask2FormerConfig":
    """Build the config of transformers' model from ours.

    Raises:
        ExportError: transformers' Mask2Former can't be configured so.
        MissingPackageError: transformers is not installed.
    """
    _check(cfg)
    try:
        from transformers import AutoConfig, Mask2FormerConfig
    except ImportError as error:
        raise MissingPackageError(__name__, "transformers", error) from error
    node, head, dinat = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DINAT
    backbone = AutoConfig.for_model(
        "dinat",
        embed_dim=dinat.EMBED_DIM,
        depths=list(dinat.DEPTHS),
        num_heads=list(dinat.NUM_HEADS),
        kernel_size=dinat.KERNEL_SIZE,
        dilations=[list(level) for level in dinat.DILATIONS] or [[1] * depth for depth in dinat.DEPTHS],
        mlp_ratio=float(dinat.MLP_RATIO),
        qkv_bias=dinat.QKV_BIAS,
        hidden_dropout_prob=dinat.DROP_RATE,
        attention_probs_dropout_prob=dinat.ATTN_DROP_RATE,
        drop_path_rate=dinat.DROP_PATH_RATE,
        layer_scale_init_value=dinat.LAYER_SCALE or 0.0,
        out_features=[f"stage{level + 1}" for level in range(len(dinat.DEPTHS))],
    )
    classes = _classes(cfg)
    labels = {class_id: classes.name(class_id) for class_id in range(head.NUM_CLASSES)}
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=head.CONVS_DIM,
        mask_feature_size=head.MASK_DIM,
        hidden_dim=node.HIDDEN_DIM,
        encoder_feedforward_dim=1024,
        encoder_layers=head.TRANSFORMER_ENC_LAYERS,
        decoder_layers=node.DEC_LAYERS,
        num_attention_heads=node.NHEADS,
        dropout=node.DROPOUT,
        dim_feedforward=node.DIM_FEEDFORWARD,
        pre_norm=node.PRE_NORM,
        enforce_input_projection=node.ENFORCE_INPUT_PROJ,
        common_stride=head.COMMON_STRIDE,
        ignore_value=head.IGNORE_VALUE,
        num_queries=node.NUM_OBJECT_QUERIES,
        no_object_weight=node.NO_OBJECT_WEIGHT,
        class_weight=node.CLASS_WEIGHT,
        mask_weight=node.MASK_WEIGHT,
        dice_weight=node.DICE_WEIGHT,
        train_num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        use_auxiliary_loss=True,
        feature_strides=[4, 8, 16, 32],
        id2label=labels,
        label2id={name: label for label, name in labels.items()},
        architectures=["Mask2FormerForUniversalSegmentation"],
    )
    # A field of ours: the stuff classes, an argument of `post_process_panoptic_segmentation`.
    config.update({"label_ids_to_fuse": [class_id for class_id in labels if class_id not in classes.thing_ids]})
    return config


def build_image_processor(cfg: CfgNode) -> "Mask2FormerImageProcessor":
    """Build transformers' preparation of images for a config.

    Images are stretched to a multiple of SIZE_DIVISIBILITY, not padded as by our model, because transformers' results
    assume that masks cover the image.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    try:
        from transformers import Mask2FormerImageProcessor
    except ImportError as error:
        raise MissingPackageError(__name__, "transformers", error) from error
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return Mask2FormerImageProcessor(
        do_resize=shortest > 0,
        size={"shortest_edge": shortest or 800, "longest_edge": longest},
        size_divisor=max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 0),
        image_mean=[value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        image_std=[value / 255 for value in cfg.MODEL.PIXEL_STD],
        ignore_index=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        # The label images of ADE20K as they are published, where 0 is "other".
        do_reduce_labels=cfg.DATASETS.TRAIN[0].startswith("ade20k_sem_seg"),
        num_labels=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    )


def build_empty_transformers_state(config: "Mask2FormerConfig") -> dict[str, Tensor]:
    """State dict of transformers' model on the meta device: names, shapes and dtypes without values.

    `dinat_backbone.transformers` has to be imported before.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    with torch.device("meta"):
        return Mask2FormerForUniversalSegmentation(config).state_dict()


def with_class_weights(state: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    """Weights of our model, with the class weights of the loss, which some files leave out."""
    weights = torch.ones(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES + 1)
    weights[-1] = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
    return {"criterion.empty_weight": weights, **state}


def _classes(cfg: CfgNode) -> ClassTable:
    return class_table(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), tasks_of(cfg))


def _check(cfg: CfgNode) -> None:
    """Compare a config with what transformers' Mask2Former can do.

    Raises:
        ExportError: A key has another value.
    """
    heads = {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": cfg.MODEL.MASK_FORMER.NHEADS}
    for key, required in {**_REQUIRED, **heads}.items():
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        found = list(value) if isinstance(value, tuple) else value
        if found != required:
            raise ExportError(f"{key} is {found!r}; Mask2Former of the transformers library has only {required!r}")
