"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, equation 3), by one of several backends.

Shapes:
    B: images; S: positions of all levels together; C: channels; L: levels; n: heads; P: points; T: queries
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gather import gather_forward
from .reference import reference_forward
from .trial import is_reliable
from .triton_backend import triton_forward, why_unavailable

BACKENDS = ("auto", "gather", "triton", "reference")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Sum bilinear samples of `value`, weighted.

    Args:
        value: [B, S, n, C / n], the levels one after the other, each row by row; of any floating type.
        spatial_shapes: height and width of each level.
        sampling_locations: [B, T, n, L, P, 2], (x, y) with 0 and 1 at the outer edges of a map; zeros outside.
        attention_weights: [B, T, n, L, P].
        backend: "reference" (`grid_sample`, any device, exportable), "gather" (plain PyTorch, for the CPU), "triton"
            (a Triton kernel, for CUDA) or "auto": `reference` while a model is exported or traced, and elsewhere
            `triton` on CUDA, after a small trial there, and `gather` on the CPU, as far as they can serve the call.
            All compute in float32, but float64 in float64. `gather` and `triton` can be differentiated once. `gather`
            is deterministic; `triton` adds up the gradient of `value` by atomic additions, in no fixed order, unless
            `torch.use_deterministic_algorithms` asks for a sorted sum; the `reference` on CUDA has no deterministic
            gradient, and PyTorch says so then.

    Returns:
        [B, T, C], in the type of `value`.

    Raises:
        ValueError: shapes that don't fit; an unknown backend, or one that can't serve the call.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    backend = _choose(value, backend)
    forward = {"gather": gather_forward, "triton": triton_forward, "reference": reference_forward}[backend]
    return forward(value, spatial_shapes, sampling_locations, attention_weights)


def check_backend(backend: str) -> None:
    """Raise a ValueError for an unknown backend."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown deformable attention backend {backend!r}; expected one of {', '.join(BACKENDS)}")


def _check(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
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
        raise ValueError(f"value must be of a floating type, got {value.dtype}")


def _choose(value: Tensor, backend: str) -> str:
    check_backend(backend)
    if backend == "auto":
        if _is_exporting():
            return "reference"
        if value.device.type == "cpu":
            return "gather"
        usable = value.is_cuda and why_unavailable(value) is None
        if usable and is_reliable(value.device, value.dtype, torch.is_grad_enabled()):
            return "triton"
        return "reference"
    reason = None
    if backend == "gather" and value.device.type != "cpu":
        reason = f"it is for the CPU, and value is on {value.device}"
    if backend == "triton":
        reason = why_unavailable(value)
    if reason is not None:
        raise ValueError(f"deformable attention backend {backend!r} can't serve this call: {reason}")
    return backend


def _is_exporting() -> bool:
    """Whether only operators that other programs know may be used (ONNX, torch.export, counting FLOPs of a trace)."""
    # PyTorch 2.6 can't tell an export from a compilation.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting()


class MSDeformAttn(nn.Module):
    """Deformable attention of one query per position: offsets and weights are read off the query."""

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.backend = backend
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point each head in a direction of its own, its points 1, 2, ... cells away; attend all of them alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        ring = direction[:, None, None, :] * distance[None, None, :, None]  # [n, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, source: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend `source` [B, S, C] from `query` [B, T, C] around `reference_points` [T, 2], (x, y) in 0..1."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(source).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        cells = torch.tensor([(width, height) for height, width in spatial_shapes], device=query.device)
        locations = reference_points[:, None, None, None, :] + offsets / cells[:, None, :]
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights, self.backend))
