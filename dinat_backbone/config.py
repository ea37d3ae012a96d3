"""The configuration keys of the backbones, and the error for values that can't be used."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from dinat_common.errors import UserError


class BackboneConfigError(UserError):
    """A setting of the backbone that can't be used; the message names the setting and what was expected."""


def add_dinat_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINAT` to `cfg` in place; the defaults are DiNAT-Tiny without dilation, which is NAT-Tiny."""
    cfg.MODEL.DINAT = CfgNode()
    node = cfg.MODEL.DINAT

    # Channels of the first level; each further level has twice as many. Isotropic networks have one level: the lists
    # below then have one entry.
    node.EMBED_DIM = 64
    # Number of blocks and of attention heads of each level.
    node.DEPTHS = [3, 4, 18, 5]
    node.NUM_HEADS = [2, 4, 8, 16]
    # Neighbors per axis. KERNEL_SIZES, if not empty, sets one kernel size per level, for maps that are small compared
    # with KERNEL_SIZE.
    node.KERNEL_SIZE = 7
    node.KERNEL_SIZES = []
    # One list per level with the dilation of each block; an empty list means no dilation.
    node.DILATIONS = []
    # Hidden width of the MLPs relative to the width of their level.
    node.MLP_RATIO = 3.0
    node.QKV_BIAS = True
    # Factor of the attention scores; None means head_dim ** -0.5.
    node.QK_SCALE = None
    # Whether each head learns a bias for every relative position.
    node.REL_POS_BIAS = True
    # Initial value of the learned scale of each residual branch; None means no scale.
    node.LAYER_SCALE = None
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    # Probability of skipping a residual branch in the last block; it rises linearly from 0 in the first block.
    node.DROP_PATH_RATE = 0.2
    # Sides of a token and of the images, in pixels: PATCH_SIZE of isotropic networks, IMAGE_SIZE of D2ViTRpb.
    node.PATCH_SIZE = 16
    node.IMAGE_SIZE = 224
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # auto, compiled (CPU), triton (CUDA), tiled, natten, reference or exportable (for ONNX); see
    # dinat_backbone.neighborhood_attention_2d.
    node.ATTENTION_BACKEND = "auto"
    # Recompute the activations inside blocks in the backward pass instead of keeping them: less memory, more time.
    node.USE_CHECKPOINT = False


def build_settings(cfg: CfgNode, input_shape: ShapeSpec, unused: Sequence[str]) -> dict[str, Any]:
    """Arguments of a backbone from a config: each key of `MODEL.DINAT` under its name in lower case.

    Args:
        cfg: Config with the keys of `add_dinat_config`.
        input_shape: Shape of the image; its channels are `in_channels`.
        unused: Keys that the backbone does not have.

    Raises:
        BackboneConfigError: A key is set that the backbone does not have.
    """
    defaults = CfgNode({"MODEL": CfgNode()})
    add_dinat_config(defaults)
    node = cfg.MODEL.DINAT
    # The backend decides how neighborhood attention is computed, so it has no effect where there is none.
    for key in set(unused) - {"ATTENTION_BACKEND"}:
        if node[key] != defaults.MODEL.DINAT[key]:
            raise BackboneConfigError(
                f"MODEL.DINAT.{key} is {node[key]!r}, but {cfg.MODEL.BACKBONE.NAME} has no such setting"
            )
    settings: dict[str, Any] = {key.lower(): value for key, value in node.items() if key not in unused}
    return settings | {"in_channels": input_shape.channels, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}
