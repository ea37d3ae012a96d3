"""NATTEN's kernels, for the cases that NATTEN 0.21 and later can compute (no relative position bias).

Hassani et al., "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
arXiv 2403.04690. Where NATTEN has no kernel of its own (a CPU, say) it calls FlexAttention, slowly and with all scores
in memory, so `auto` takes this backend on CUDA devices only.
"""

from importlib import metadata, util
from typing import cast

from torch import Tensor

_OLDEST = (0, 21)


def why_unavailable(rpb: Tensor | None) -> str | None:
    """Say why NATTEN can't serve a call, or None if it can."""
    if rpb is not None:
        return "NATTEN has had no relative position bias since 0.20; pass rpb=None or take another backend"
    if util.find_spec("natten") is None:
        return "NATTEN is not installed"
    version = metadata.version("natten")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"NATTEN {version} is installed, expected >= {'.'.join(map(str, _OLDEST))}"
    return None


def natten_forward(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int, scale: float) -> Tensor:
    """Neighborhood attention of [B, H, W, n, D] tensors without a bias; see `neighborhood_attention_2d`."""
    # Imported here: NATTEN is optional, and importing it takes seconds.
    from natten.functional import na2d

    output = na2d(query, key, value, kernel_size=kernel_size, dilation=dilation, scale=scale)
    # With return_lse, which is off, it would be a tuple.
    return cast(Tensor, output)
