"""What a model costs and how far it sees: parameters, multiply-adds, receptive fields, other dilations."""

from .charts import Fields, draw_fields
from .costs import Cost, Costs, count_costs, printed
from .dilation_sweep import (
    DilationError,
    Dilations,
    Evaluation,
    main_metrics,
    parse_dilations,
    read_evaluations,
    write_report,
)
from .networks import Network, build_network
from .receptive_fields import (
    LayerField,
    NeighborRule,
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
    "DilationError",
    "Dilations",
    "Evaluation",
    "Fields",
    "LayerField",
    "NeighborRule",
    "Network",
    "area_above",
    "build_network",
    "count_costs",
    "draw_fields",
    "effective_fields",
    "main_metrics",
    "own_neighbors",
    "parse_dilations",
    "printed",
    "read_evaluations",
    "side_around",
    "swin_neighbors",
    "theoretical_fields",
    "write_report",
]
