"""Mask2Former on Detectron2; importing this registers its parts under the names that configs use."""

from . import modeling
from .config import ConfigError, add_maskformer2_config, setup_cfg
from .maskformer_model import MaskFormer
from .prediction.predictor import Predictor

__all__ = ["ConfigError", "MaskFormer", "Predictor", "add_maskformer2_config", "modeling", "setup_cfg"]
