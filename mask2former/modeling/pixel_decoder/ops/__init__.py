"""Multi-scale deformable attention: one function, several backends."""

from .dispatch import check_backend, ms_deform_attn

__all__ = ["check_backend", "ms_deform_attn"]
