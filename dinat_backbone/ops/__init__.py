"""Neighborhood attention with dilation and relative position bias: one function over several backends."""

from .neighborhood_attention import BACKENDS, neighborhood_attention_2d

__all__ = ["BACKENDS", "neighborhood_attention_2d"]
