"""What a model costs and how far it sees: parameters, multiply-adds, receptive fields, other dilations."""

from .costs import Cost, Costs, count_costs, printed
from .networks import Network, build_network
from .receptive_fields import (
    LayerField,
    area_above,
    effective_fields,
    own_neighbors,
    side_around,
    swin_neighbors,
    theoretical_fields,
)

__all__ = [
    "Cost",
    "Costs",
    "LayerField",
    "Network",
    "area_above",
    "build_network",
    "count_costs",
    "effective_fields",
    "own_neighbors",
    "printed",
    "side_around",
    "swin_neighbors",
    "theoretical_fields",
]
