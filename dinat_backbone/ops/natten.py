"""The kernels of NATTEN 0.21 and later, which have no relative position bias.

Hassani et al., "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
arXiv 2403.04690. Where NATTEN lacks a kernel of its own, for example on a CPU, it calls FlexAttention, which is slow
and keeps all scores in memory; `auto` therefore uses this backend on CUDA devices only.
"""

from importlib import metadata, util
from typing import cast

from torch import Tensor

from .reference import Call, why_no_dropout

_OLDEST = (0, 21)


def why_not(call: Call) -> str | None:
    """Return the reason why NATTEN can't serve a call, or None if it can."""
    if call.rpb is not None:
        return "NATTEN has had no relative position bias since 0.20; pass rpb=None or choose another backend"
    if util.find_spec("natten") is None:
        return "NATTEN is not installed"
    version = metadata.version("natten")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"NATTEN {version} is installed, expected >= {'.'.join(map(str, _OLDEST))}"
    return why_no_dropout(call)


def forward(call: Call) -> Tensor:
    """Compute the attention of [B, H, W, n, D] tensors without a bias."""
    # Imported here because NATTEN is optional and takes seconds to import.
    from natten.functional import na2d

    query, key, value, _, kernel_size, dilation, scale, _ = call
    output = na2d(query, key, value, kernel_size=kernel_size, dilation=dilation, scale=scale)
    # The result is a tuple only with return_lse, which is off.
    return cast(Tensor, output)
