"""Neighborhood attention with dilation and relative position bias: one function over several backends."""

from .dispatch import BACKENDS, neighborhood_attention_2d

__all__ = ["BACKENDS", "neighborhood_attention_2d"]
