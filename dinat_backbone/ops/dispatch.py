"""The entry point of neighborhood attention: it checks a call, chooses a backend and runs it.

`BACKENDS` lists all backends and `AUTO_ORDER` the order in which `auto` tries them. A backend that was asked for by
name either serves the call or raises an error that gives the reason; nothing falls back silently.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import BackboneConfigError
from . import compiled, exportable, natten, reference, tiled, triton_backend
from .reference import Call, why_no_dropout


@dataclass(frozen=True)
class Backend:
    """One implementation of neighborhood attention.

    Attributes:
        why_not: Function that returns the reason why the backend can't serve a call, or None if it can.
        forward: Function that computes the output of a call.
        why_not_auto: Function that `auto` calls instead of `why_not`; it may also try the backend on this machine, and
            then logs why the backend is not used. None means `why_not`.
    """

    why_not: Callable[[Call], str | None]
    forward: Callable[[Call], Tensor]
    why_not_auto: Callable[[Call], str | None] | None = None


BACKENDS: Mapping[str, Backend] = {
    "compiled": Backend(compiled.why_not, compiled.forward, compiled.why_not_auto),
    "triton": Backend(triton_backend.why_not, triton_backend.forward, triton_backend.why_not_auto),
    "tiled": Backend(why_no_dropout, tiled.forward),
    "natten": Backend(natten.why_not, natten.forward),
    "reference": Backend(lambda call: None, reference.forward),
    "exportable": Backend(why_no_dropout, exportable.forward),
}
# Backends that `auto` tries on a type of device; "reference" follows, which alone serves calls with attention dropout.
AUTO_ORDER: Mapping[str, tuple[str, ...]] = {
    # NATTEN's kernels, written for each generation of devices, come first; they serve calls without a bias.
    "cuda": ("natten", "triton", "tiled"),
    "cpu": ("compiled", "tiled"),
    # Shapes alone are computed: one operator, whose cost is known, instead of the parts of "tiled".
    "meta": ("compiled", "tiled"),
}
_AUTO_ELSEWHERE = ("tiled",)


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
    """Attend from every position of a map to the k x k nearest positions of its dilated neighborhood.

    Along each axis, position i belongs to residue group i mod dilation. In the coordinates of its group, the window of
    a query consists of the k positions around it, shifted inwards at the borders, so that every query has k x k keys.
    The result is softmax(query . key * scale + rpb) . value, with `rpb` read at (y - x + k - 1) per axis for query x
    and key y (Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, section 3.1; Hassani and Shi, "Dilated
    Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1).

    Args:
        query: Tensor [B, H, W, heads, D] in float32, float64, bfloat16, or float16 if the device supports it. H and W
            must be at least kernel_size * dilation.
        key: Tensor like `query`.
        value: Tensor like `query`.
        rpb: Relative position bias [heads, 2k - 1, 2k - 1], rows first, in any floating-point type; or None.
        kernel_size: Odd number k of neighbors per axis.
        dilation: Distance between neighbors.
        scale: Factor of the scores; None means D ** -0.5.
        backend: Name of a backend, or "auto". All backends but "natten" differentiate with respect to all inputs.

            * "auto": the first one that can serve the call. On CUDA: "natten", then "triton" after a trial on the
              device, then "tiled". On a CPU: "compiled" if it can be built and the environment does not contain
              DINAT_COMPILED_ATTENTION=0, then "tiled". On other devices: "tiled".
            * "tiled": plain PyTorch on any device.
            * "compiled": C++ kernel for CPUs, built at first use; float32 and bfloat16.
            * "triton": Triton kernels for CUDA; float32, bfloat16 and float16, up to 128 channels per head.
            * "natten": kernels of NATTEN, without `rpb`.
            * "reference": direct gathering, for tests and for attention dropout.
            * "exportable": fixed graph of common operators, for ONNX and torch.export.
        dropout_p: Probability of dropping an attention probability; served by "reference" alone.

    Returns:
        Tensor [B, H, W, heads, D] in the type of `query`.

    Raises:
        ValueError: The shapes, types or sizes of the tensors don't fit.
        BackboneConfigError: `kernel_size`, `dilation` or `backend` is invalid, or the backend can't serve the call.
    """
    check_settings(kernel_size, dilation, backend)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    call = Call(query, key, value, rpb, kernel_size, dilation, scale, dropout_p)
    _check_tensors(call)
    chosen = _choose(call, backend)
    # The type of the inputs decides the precision; autocast must not lower it further. It has no meta device.
    with torch.autocast("cpu" if query.is_meta else query.device.type, enabled=False):
        return chosen.forward(call)


def check_settings(kernel_size: int, dilation: int, backend: str) -> None:
    """Check the settings that do not depend on a map.

    Raises:
        BackboneConfigError: A setting is invalid; the message names it.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise BackboneConfigError(f"kernel_size must be odd and positive, got {kernel_size}")
    if dilation < 1:
        raise BackboneConfigError(f"dilation must be at least 1, got {dilation}")
    if backend not in ("auto", *BACKENDS):
        raise BackboneConfigError(
            f"unknown attention backend {backend!r}; expected one of {', '.join(['auto', *BACKENDS])}"
        )


def _check_tensors(call: Call) -> None:
    query, rpb, kernel_size, dilation = call.query, call.rpb, call.kernel_size, call.dilation
    if query.dim() != 5:
        raise ValueError(f"query must be [B, H, W, heads, channels], got {tuple(query.shape)}")
    for name, x in (("key", call.key), ("value", call.value)):
        if x.shape != query.shape or x.dtype != query.dtype or x.device != query.device:
            expected, got = ((tuple(t.shape), t.dtype, str(t.device)) for t in (query, x))
            raise ValueError(f"{name} must be like query {expected}, got {got}")
    if not query.is_floating_point():
        raise ValueError(f"query must be of a floating-point type, got {query.dtype}")
    height, width, heads = query.shape[1:4]
    # Not min(), which would make an export depend on which side is shorter.
    if height < kernel_size * dilation or width < kernel_size * dilation:
        raise ValueError(
            f"a map of {height} x {width} is smaller than kernel_size * dilation = {kernel_size} * {dilation}; "
            "NeighborhoodAttention2D pads such maps"
        )
    table = (heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
    if rpb is not None and tuple(rpb.shape) != table:
        raise ValueError(f"rpb must be [heads, 2k - 1, 2k - 1] = {table}, got {tuple(rpb.shape)}")


def _choose(call: Call, name: str) -> Backend:
    if name != "auto":
        reason = BACKENDS[name].why_not(call)
        if reason is not None:
            raise BackboneConfigError(f"attention backend {name!r} can't serve this call: {reason}")
        return BACKENDS[name]
    for candidate in AUTO_ORDER.get(call.query.device.type, _AUTO_ELSEWHERE):
        backend = BACKENDS[candidate]
        if (backend.why_not_auto or backend.why_not)(call) is None:
            return backend
    return BACKENDS["reference"]
