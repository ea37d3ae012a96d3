"""Neighborhood attention on a CPU by a small C++ kernel that is built at first use; optional, see `cpu/build.py`.

The forward pass works on rows of queries in registers, without tiles' masked keys; the backward pass computes
probabilities again, from one number per query that the forward pass kept. bfloat16 is computed in float32.
"""

import ctypes
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cpp.build import library, why_not_buildable

_DTYPES = (torch.float32, torch.bfloat16)
_MAPS = (
    *("query", "key", "value", "output"),
    *("output_gradient", "query_gradient", "key_gradient", "value_gradient"),
)
_POINTERS = ("bias", "logsumexp", "bias_gradient")
_SIZES = ("batch", "height", "width", "heads", "channels", "dilation", "threads", "bfloat16")
_logger = logging.getLogger(__name__)


class _Map(ctypes.Structure):
    """A tensor [B, H, W, n, D] with contiguous channels, as in `cpu/common.h`."""

    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))


class _Problem(ctypes.Structure):
    """All arguments of the kernel, as in `cpu/common.h`."""

    _fields_ = (
        *((name, _Map) for name in _MAPS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
    )


def why_unavailable(query: Tensor, kernel_size: int) -> str | None:
    """Say why the kernel can't serve a call, or None if it can (it is built then)."""
    if query.device.type != "cpu":
        return f"it computes on the CPU alone, got a tensor on {query.device}"
    if query.dtype not in _DTYPES:
        return f"it computes float32 and bfloat16, got {query.dtype}"
    return _why_not_built(kernel_size)


def is_best(query: Tensor, kernel_size: int) -> bool:
    """Whether `auto` should take the kernel; logs one line where the machine could use it but can't build it."""
    if query.device.type != "cpu" or query.dtype not in _DTYPES:
        return False
    return _why_not_built(kernel_size) is None or _say_so(kernel_size)


# A constant for torch.compile, which must not look into it.
@torch.compiler.assume_constant_result
def _why_not_built(kernel_size: int) -> str | None:
    return why_not_buildable(kernel_size)


@torch.compiler.assume_constant_result
def _say_so(kernel_size: int) -> bool:
    _log_once(why_not_buildable(kernel_size))
    return False


@cache
def _log_once(reason: str | None) -> None:
    _logger.warning("Neighborhood attention runs in plain PyTorch, several times slower than compiled: %s", reason)


@torch.library.custom_op(
    "dinat_backbone::neighborhood_attention_2d",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor query, Tensor key, Tensor value, Tensor? rpb, int kernel_size, int dilation, float scale,"
    " bool keep) -> (Tensor, Tensor)",
)
def compiled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: int,
    dilation: int,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention of [B, H, W, n, D] tensors; see `neighborhood_attention_2d`.

    Returns:
        The output, and what the backward pass needs: base-2 logarithms of the sums of exponentials, [B, H, W, n], in
        float32; empty unless `keep`.
    """
    query, key, value = (_channels_contiguous(x) for x in (query, key, value))
    output, sums = _empty_results(query, keep)
    maps = {"query": query, "key": key, "value": value, "output": output}
    bias = None if rpb is None else rpb.detach().float().contiguous()
    problem = _problem(maps, {"bias": bias, "logsumexp": sums if keep else None}, dilation, scale)
    _call("forward", problem, kernel_size)
    return output, sums


@compiled_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: int,
    dilation: int,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_results(query, keep)


@torch.library.custom_op(
    "dinat_backbone::neighborhood_attention_2d_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor query, Tensor key, Tensor value, Tensor? rpb, Tensor sums, Tensor gradient,"
    " int kernel_size, int dilation, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
)
def compiled_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    sums: Tensor,
    gradient: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and rpb (empty without one), given the sums kept and the output's gradient."""
    query, key, value = (_channels_contiguous(x) for x in (query, key, value))
    results = [torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3)]
    maps = {"query": query, "key": key, "value": value, "output_gradient": gradient.contiguous()}
    maps |= dict(zip(("query_gradient", "key_gradient", "value_gradient"), results, strict=True))
    bias = None if rpb is None else rpb.detach().float().contiguous()
    problem = _problem(maps, {"bias": bias, "logsumexp": sums}, dilation, scale)
    rpb_gradient = query.new_empty(0)
    parts = None
    if rpb is not None:
        # Threads write to tables of their own, which are summed in a fixed order.
        count = library(kernel_size).backward_parts(ctypes.byref(problem))
        parts = torch.empty(rpb.shape[0], count, *rpb.shape[1:])
        problem.bias_gradient = parts.data_ptr()
    _call("backward", problem, kernel_size)
    if rpb is not None and parts is not None:
        rpb_gradient = parts.sum(1).to(rpb.dtype)
    return results[0], results[1], results[2], rpb_gradient


@compiled_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    sums: Tensor,
    gradient: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = [torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3)]
    return results[0], results[1], results[2], query.new_empty(0) if rpb is None else torch.empty_like(rpb)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, rpb, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, rpb, output[1])


def _differentiate(ctx: Any, gradient: Tensor, _gradient_of_sums: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, rpb, sums = ctx.saved_tensors
    gradients = compiled_backward(query, key, value, rpb, sums, gradient, *ctx.settings[:3])
    return *gradients[:3], None if rpb is None else gradients[3], None, None, None, None


compiled_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _channels_contiguous(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_results(query: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(query.shape[:4] if keep else (0,), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), sums


def _problem(maps: dict[str, Tensor], tables: dict[str, Tensor | None], dilation: int, scale: float) -> _Problem:
    problem = _Problem(dilation=dilation, threads=torch.get_num_threads(), scale=scale)
    problem.bfloat16 = maps["query"].dtype == torch.bfloat16
    for name, x in maps.items():
        setattr(problem, name, _Map(x.data_ptr(), (ctypes.c_int64 * 4)(*x.stride()[:4])))
    for name, x in tables.items():
        setattr(problem, name, None if x is None else x.data_ptr())
    for name, size in zip(_SIZES[:5], maps["query"].shape, strict=True):
        setattr(problem, name, size)
    return problem


def _call(function: str, problem: _Problem, kernel_size: int) -> None:
    if getattr(library(kernel_size), function)(ctypes.byref(problem)):
        raise MemoryError(f"no memory for the CPU kernel of neighborhood attention ({function})")
