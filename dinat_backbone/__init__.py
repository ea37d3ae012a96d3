"""DiNAT as a Detectron2 backbone, and the neighborhood attention that it is built from."""

from .config import BackboneConfigError, add_dinat_config
from .dinat import D2DiNAT, DiNAT, NeighborhoodAttention2D
from .ops import neighborhood_attention_2d

__all__ = [
    "BackboneConfigError",
    "D2DiNAT",
    "DiNAT",
    "NeighborhoodAttention2D",
    "add_dinat_config",
    "neighborhood_attention_2d",
]
