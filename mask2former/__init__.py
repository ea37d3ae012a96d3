"""Mask2Former on Detectron2; importing it registers its parts under the names that configs use."""

import dinat_common  # noqa: F401 - imports Detectron2 before others do, without its warnings

from . import compat, modeling
from .config import ConfigError, add_maskformer2_config, setup_cfg
from .maskformer_model import MaskFormer
from .prediction.predictor import Predictor

compat.install()

__all__ = ["ConfigError", "MaskFormer", "Predictor", "add_maskformer2_config", "modeling", "setup_cfg"]
