"""NAT, DiNAT and their relatives as Detectron2 backbones and as classifiers, and the attention that they share."""

from .blocks import NeighborhoodAttention2D
from .config import BackboneConfigError, add_dinat_config
from .dinat import D2DiNAT, DiNAT
from .dinat_s import D2DiNATs, DiNATs
from .isotropic import D2IsotropicDiNAT
from .ops import neighborhood_attention_2d
from .variants import create_classifier
from .vit_rpb import D2ViTRpb

__all__ = [
    "BackboneConfigError",
    "D2DiNAT",
    "D2DiNATs",
    "D2IsotropicDiNAT",
    "D2ViTRpb",
    "DiNAT",
    "DiNATs",
    "NeighborhoodAttention2D",
    "add_dinat_config",
    "create_classifier",
    "neighborhood_attention_2d",
]
