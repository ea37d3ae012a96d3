"""DiNAT as a Detectron2 backbone, and the neighborhood attention it is made of."""

from .config import add_dinat_config
from .dinat import D2DiNAT, DiNAT
from .neighborhood_attention import NeighborhoodAttention2D
from .ops import neighborhood_attention_2d

__all__ = ["D2DiNAT", "DiNAT", "NeighborhoodAttention2D", "add_dinat_config", "neighborhood_attention_2d"]
