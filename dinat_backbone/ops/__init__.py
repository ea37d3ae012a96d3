"""Neighborhood attention with dilation and relative position bias: one function, several backends."""

from .dispatch import check_settings, neighborhood_attention_2d

__all__ = ["check_settings", "neighborhood_attention_2d"]
