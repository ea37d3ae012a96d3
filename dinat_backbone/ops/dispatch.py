"""The one entry to neighborhood attention: checks a call, chooses a backend, and never falls back silently."""

import torch
from torch import Tensor

from . import compiled, triton_backend
from .exportable import exportable_forward
from .natten import natten_forward, why_unavailable
from .reference import reference_forward
from .tiled import TiledNeighborhoodAttention, tiled_forward
from .trial import is_reliable

BACKENDS = ("auto", "compiled", "triton", "tiled", "natten", "reference", "exportable")


def neighborhood_attention_2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: int,
    dilation: int,
    scale: float | None = None,
    backend: str = "auto",
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend, from every position of a map, the k x k nearest positions of its dilated neighborhood.

    Along each axis, position i belongs to residue group i mod dilation; in coordinates of that group its window is
    the k positions around it, pushed inwards at the borders, so that there are always k x k keys. The result is
    softmax(query . key * scale + rpb) . value, with `rpb` read at (y - x + k - 1) per axis, for query x and key y
    (Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, section 3.1; Hassani and Shi, "Dilated
    Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1).

    Args:
        query: [B, H, W, heads, D] in float32, float64, bfloat16, or float16 where the device computes in it; H and W
            at least kernel_size * dilation, otherwise any.
        key: as query.
        value: as query.
        rpb: [heads, 2k - 1, 2k - 1], rows first, of any floating type; or None.
        kernel_size: k, odd.
        dilation: distance between neighbors.
        scale: factor of the scores; default D ** -0.5.
        backend: "tiled" (plain PyTorch, any device), "compiled" (float32 and bfloat16 on a CPU, by a C++ kernel that
            is built at first use), "triton" (float32, bfloat16 and float16 on CUDA, up to 128 channels a head, by
            Triton kernels), "natten" (NATTEN's kernels, without `rpb`), "reference" (direct gather, for tests),
            "exportable" (one fixed graph of common operators, for ONNX and torch.export) or "auto", which takes on
            CUDA NATTEN's kernels, else Triton's, where they can serve the call, the C++ kernel on a CPU where it can
            be built (and DINAT_COMPILED_ATTENTION=0 is not in the environment), and `tiled` otherwise. All but
            NATTEN's have gradients for all inputs.
        dropout_p: drop attention probabilities with this chance; served by "reference" alone.

    Returns:
        [B, H, W, heads, D], in the type of `query`.

    Raises:
        ValueError: shapes, types or sizes that don't fit; an unknown backend, or one that can't serve the call.
    """
    _check(query, key, value, rpb, kernel_size, dilation)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = _choose(query, rpb, kernel_size, backend, dropout_p)
    # The inputs' type decides the precision; autocast must not lower it further inside.
    with torch.autocast(query.device.type, enabled=False):
        if backend == "natten":
            return natten_forward(query, key, value, kernel_size, dilation, scale)
        if backend == "compiled":
            keep = torch.is_grad_enabled()
            return compiled.compiled_forward(query, key, value, rpb, kernel_size, dilation, scale, keep)[0]
        if backend == "triton":
            return triton_backend.triton_forward(query, key, value, rpb, kernel_size, dilation, scale)[0]
        if backend == "exportable":
            return exportable_forward(query, key, value, rpb, kernel_size, dilation, scale)
        if backend == "reference":
            return reference_forward(query, key, value, rpb, kernel_size, dilation, scale, dropout_p)
        if torch.is_grad_enabled():
            return TiledNeighborhoodAttention.apply(query, key, value, rpb, kernel_size, dilation, scale)
        return tiled_forward(query, key, value, rpb, kernel_size, dilation, scale)


def _check(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int) -> None:
    if query.dim() != 5:
        raise ValueError(f"query must be [B, H, W, heads, channels], got {tuple(query.shape)}")
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape or x.dtype != query.dtype or x.device != query.device:
            expected, got = ((tuple(t.shape), t.dtype, str(t.device)) for t in (query, x))
            raise ValueError(f"{name} must be like query {expected}, got {got}")
    if not query.is_floating_point():
        raise ValueError(f"query must be of a floating type, got {query.dtype}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    height, width, heads = query.shape[1:4]
    # Not min(), which would have an export ask which side is shorter.
    if height < kernel_size * dilation or width < kernel_size * dilation:
        raise ValueError(
            f"a map of {height} x {width} is smaller than kernel_size * dilation = {kernel_size} * {dilation}; "
            "NeighborhoodAttention2D pads such maps"
        )
    table = (heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
    if rpb is not None and tuple(rpb.shape) != table:
        raise ValueError(f"rpb must be [heads, 2k - 1, 2k - 1] = {table}, got {tuple(rpb.shape)}")


def _choose(query: Tensor, rpb: Tensor | None, kernel_size: int, backend: str, dropout_p: float) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if dropout_p > 0:
        if backend in ("auto", "reference"):
            return "reference"
        raise ValueError(f"attention dropout is served by the backend 'reference', not by {backend!r}")
    reason = _why_not(query, rpb, kernel_size, backend)
    if reason is not None:
        raise ValueError(f"attention backend {backend!r} can't serve this call: {reason}")
    if backend == "auto":
        if query.is_cuda:
            # NATTEN's kernels, written for each generation of devices, have no bias to add.
            if _why_not(query, rpb, kernel_size, "natten") is None:
                return "natten"
            if _why_not(query, rpb, kernel_size, "triton") is None and is_reliable(
                query.device, query.dtype, kernel_size, query.shape[-1], torch.is_grad_enabled()
            ):
                return "triton"
        return "compiled" if compiled.is_best(query, kernel_size) else "tiled"
    return backend


def _why_not(query: Tensor, rpb: Tensor | None, kernel_size: int, backend: str) -> str | None:
    """Say why a backend can't serve a call that is right in itself, or None if it can."""
    if backend == "natten":
        return why_unavailable(rpb)
    if backend == "compiled":
        return compiled.why_unavailable(query, kernel_size)
    if backend == "triton":
        return triton_backend.why_unavailable(query, kernel_size)
    return None
