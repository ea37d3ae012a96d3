"""The entry point of multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, equation 3).

It checks a call, chooses a backend and runs it. `BACKENDS` lists all backends and `AUTO_ORDER` those that `auto` tries.
A backend that was asked for by name either serves the call or raises an error that gives the reason.

Shapes:
    B: images; S: positions of all levels together; C: channels; L: levels; n: heads; P: points; T: queries
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....config import ConfigError
from . import gather, reference, triton_backend


@dataclass(frozen=True)
class DeformableBackend:
    """One implementation of deformable attention.

    Attributes:
        why_not: Function that returns the reason why the backend can't serve a call with this `value`, or None.
        forward: Function that computes the output from value, spatial shapes, sampling locations and weights.
        why_not_auto: Function that `auto` calls instead of `why_not`; it may also try the backend on this machine, and
            then logs why the backend is not used. None means `why_not`.
    """

    why_not: Callable[[Tensor], str | None]
    forward: Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]
    why_not_auto: Callable[[Tensor], str | None] | None = None


BACKENDS: Mapping[str, DeformableBackend] = {
    "gather": DeformableBackend(gather.why_not, gather.forward),
    "triton": DeformableBackend(triton_backend.why_not, triton_backend.forward, triton_backend.why_not_auto),
    "reference": DeformableBackend(lambda value: None, reference.forward),
}
# Backends that `auto` tries on a type of device, before "reference", which serves every call.
AUTO_ORDER: Mapping[str, tuple[str, ...]] = {"cuda": ("triton",), "cpu": ("gather",)}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Sum bilinear samples of `value`, weighted.

    Args:
        value: Tensor [B, S, n, C / n] of any floating-point type: the levels one after the other, each row by row.
        spatial_shapes: Height and width of each level.
        sampling_locations: Tensor [B, T, n, L, P, 2] of (x, y), where 0 and 1 are the outer edges of a map; samples
            outside are zero.
        attention_weights: Tensor [B, T, n, L, P].
        backend: Name of a backend, or "auto". All compute in float32, or in float64 for float64 inputs.

            * "auto": "reference" while a model is exported or traced; otherwise "triton" on CUDA, after a trial on the
              device, "gather" on a CPU, and "reference" where those can't serve the call.
            * "reference": `grid_sample` on any device, exportable. Its gradient on CUDA is not deterministic, and
              PyTorch reports that if `torch.use_deterministic_algorithms` is set.
            * "gather": plain PyTorch for CPUs, deterministic; can be differentiated once.
            * "triton": Triton kernels for CUDA; can be differentiated once. The gradient of `value` is summed by atomic
              additions in no fixed order, unless `torch.use_deterministic_algorithms` asks for a sorted sum.

    Returns:
        Tensor [B, T, C] in the type of `value`.

    Raises:
        ValueError: The shapes or types of the tensors don't fit.
        ConfigError: The backend is unknown or can't serve the call.
    """
    check_backend(backend)
    _check_tensors(value, spatial_shapes, sampling_locations, attention_weights)
    return _choose(value, backend).forward(value, spatial_shapes, sampling_locations, attention_weights)


def check_backend(backend: str) -> None:
    """Raise a ConfigError if `backend` is not the name of a backend or "auto"."""
    if backend not in ("auto", *BACKENDS):
        names = ", ".join(["auto", *BACKENDS])
        raise ConfigError(f"unknown deformable attention backend {backend!r}; expected one of {names}")


def _check_tensors(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> None:
    if value.dim() != 4 or locations.dim() != 6:
        raise ValueError(
            "expected value [B, S, n, C / n] and sampling_locations [B, T, n, L, P, 2], "
            f"got {tuple(value.shape)} and {tuple(locations.shape)}"
        )
    positions = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != positions:
        raise ValueError(f"value has {value.shape[1]} positions, the levels {list(spatial_shapes)} have {positions}")
    expected = (value.shape[0], locations.shape[1], value.shape[2], len(spatial_shapes), locations.shape[4], 2)
    if tuple(locations.shape) != expected:
        raise ValueError(f"sampling_locations must be [B, T, n, L, P, 2] = {expected}, got {tuple(locations.shape)}")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"attention_weights must be {tuple(locations.shape[:-1])}, got {tuple(weights.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"value must be of a floating-point type, got {value.dtype}")


def _choose(value: Tensor, name: str) -> DeformableBackend:
    if name != "auto":
        reason = BACKENDS[name].why_not(value)
        if reason is not None:
            raise ConfigError(f"deformable attention backend {name!r} can't serve this call: {reason}")
        return BACKENDS[name]
    # Exported and traced graphs may contain only operators that other programs know (ONNX, torch.export, FLOP counts).
    # PyTorch 2.6 can't distinguish an export from a compilation.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    if not (torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting()):
        for candidate in AUTO_ORDER.get(value.device.type, ()):
            backend = BACKENDS[candidate]
            if (backend.why_not_auto or backend.why_not)(value) is None:
                return backend
    return BACKENDS["reference"]
