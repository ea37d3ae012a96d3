"""What a model costs and how far it sees: parameters, multiply-adds, receptive fields, other dilations."""

from .costs import Cost, Costs, count_costs, printed
from .networks import Network, build_network

__all__ = ["Cost", "Costs", "Network", "build_network", "count_costs", "printed"]
