"""The configuration keys of the DiNAT backbone."""

from detectron2.config import CfgNode


def add_dinat_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINAT` to `cfg`, in place; defaults are DiNAT-Tiny without dilation (that is, NAT-Tiny)."""
    cfg.MODEL.DINAT = CfgNode()
    node = cfg.MODEL.DINAT

    # Channels of the first level; each further level has twice as many.
    node.EMBED_DIM = 64
    # Blocks and attention heads of each level.
    node.DEPTHS = [3, 4, 18, 5]
    node.NUM_HEADS = [2, 4, 8, 16]
    # Neighbors per axis, and per level one dilation a block; an empty list: no dilation anywhere.
    node.KERNEL_SIZE = 7
    # One kernel size a level instead, for maps that are small compared with KERNEL_SIZE; empty: KERNEL_SIZE everywhere.
    node.KERNEL_SIZES = []
    node.DILATIONS = []
    # Hidden width of an MLP relative to its level's.
    node.MLP_RATIO = 3.0
    node.QKV_BIAS = True
    # Factor of the attention scores; None: head_dim ** -0.5.
    node.QK_SCALE = None
    # Learnt bias per head and relative position.
    node.REL_POS_BIAS = True
    # Initial value of the learnt scale of each residual branch; None: no such scale.
    node.LAYER_SCALE = None
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    # Chance to skip a residual branch of the last block; earlier blocks less, linearly.
    node.DROP_PATH_RATE = 0.2
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # auto, compiled (CPU), triton (CUDA), tiled, natten, reference or exportable (for ONNX): see
    # dinat_backbone.neighborhood_attention_2d.
    node.ATTENTION_BACKEND = "auto"
    # Forget activations inside blocks and compute them again in the backward pass: less memory, more time.
    node.USE_CHECKPOINT = False
