"""Neighborhood attention on a CPU by a C++ kernel that is built at first use; see `cpp/build.py`.

The forward pass keeps rows of queries in registers and computes no masked keys. The backward pass recomputes the
probabilities from one number per query that the forward pass kept. bfloat16 inputs are computed in float32.
"""

import ctypes
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cpp.build import library, why_not_buildable
from .reference import Call, empty_gradients, make_operator, why_no_dropout

_DTYPES = (torch.float32, torch.bfloat16)
_MAPS = (
    *("query", "key", "value", "output"),
    *("output_gradient", "query_gradient", "key_gradient", "value_gradient"),
)
_POINTERS = ("bias", "logsumexp", "bias_gradient")
_SIZES = ("batch", "height", "width", "heads", "channels", "dilation", "threads", "bfloat16")
_logger = logging.getLogger(__name__)


class _Map(ctypes.Structure):
    """The struct `Map` of `cpp/common.h`: a tensor [B, H, W, n, D] with contiguous channels."""

    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))


class _Problem(ctypes.Structure):
    """The struct `Problem` of `cpp/common.h`: all arguments of the kernel."""

    _fields_ = (
        *((name, _Map) for name in _MAPS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
    )


_CountParts = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(_Problem))


def why_not(call: Call) -> str | None:
    """Return the reason why the kernel can't serve a call, or None if it can; the kernel is built if necessary.

    On the meta device, which computes shapes alone, the operator needs no kernel.
    """
    return _why_unsuitable(call) or (None if call.query.is_meta else _why_not_built(call.kernel_size, log=False))


def why_not_auto(call: Call) -> str | None:
    """Do the same as `why_not`, and log one line if the kernel suits the call but can't be built."""
    return _why_unsuitable(call) or (None if call.query.is_meta else _why_not_built(call.kernel_size, log=True))


def _why_unsuitable(call: Call) -> str | None:
    if call.query.device.type not in ("cpu", "meta"):
        return f"it computes on the CPU alone, got a tensor on {call.query.device}"
    if call.query.dtype not in _DTYPES:
        return f"it computes float32 and bfloat16, got {call.query.dtype}"
    return why_no_dropout(call)


# A constant for torch.compile, which must not trace into it.
@torch.compiler.assume_constant_result
def _why_not_built(kernel_size: int, log: bool) -> str | None:
    reason = why_not_buildable(kernel_size)
    if log and reason is not None:
        warn_once(reason)
    return reason


@cache
def warn_once(reason: str) -> None:
    """Log that attention is slow, once for each reason."""
    _logger.warning("Neighborhood attention runs in plain PyTorch, several times slower than compiled: %s", reason)


def _empty_sums(query: Tensor, keep: bool) -> Tensor:
    """Memory for the base-2 logarithms of the sums of exponentials: [B, H, W, n], or empty."""
    return query.new_empty(query.shape[:4] if keep else (0,), dtype=torch.float32)


def _forward(call: Call, keep: bool) -> tuple[Tensor, Tensor]:
    call = _readable(call)
    output, sums = torch.empty_like(call.query, memory_format=torch.contiguous_format), _empty_sums(call.query, keep)
    _run("forward", call.kernel_size, _problem(call, {"output": output}, {"logsumexp": sums if keep else None}))
    return output, sums


def _backward(
    call: Call, _output: Tensor | None, sums: Tensor, gradient: Tensor, bias_needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = empty_gradients(call.query, call.rpb if bias_needed else None)
    call, gradient = _readable(call), gradient.contiguous()
    names = ("output_gradient", "query_gradient", "key_gradient", "value_gradient")
    maps = dict(zip(names, (gradient, *results[:3]), strict=True))
    tables: dict[str, Tensor | None] = {"logsumexp": sums}
    if call.rpb is None or not bias_needed:
        _run("backward", call.kernel_size, _problem(call, maps, tables))
    else:
        # Threads write to tables of their own, which are then summed in a fixed order.
        count_parts = _CountParts(("backward_parts", library(call.kernel_size)))
        count = count_parts(ctypes.byref(_problem(call, maps, tables)))
        parts = torch.empty(call.rpb.shape[0], count, *call.rpb.shape[1:])
        _run("backward", call.kernel_size, _problem(call, maps, tables | {"bias_gradient": parts}))
        results[3].copy_(parts.sum(1))
    return results


def _readable(call: Call) -> Call:
    """Copy what the kernel can't read as it is: it expects contiguous channels and a bias in float32."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.query, call.key, call.value))
    rpb = None if call.rpb is None else call.rpb.float().contiguous()
    return call._replace(query=query, key=key, value=value, rpb=rpb)


def _problem(call: Call, maps: dict[str, Tensor], tables: dict[str, Tensor | None]) -> _Problem:
    """Describe a call to the kernel; the tensors must outlive the result."""
    maps = {"query": call.query, "key": call.key, "value": call.value} | maps
    tables = {"bias": call.rpb} | tables
    sizes = (*call.query.shape, call.dilation, torch.get_num_threads(), call.query.dtype == torch.bfloat16)
    fields: dict[str, Any] = dict(zip(_SIZES, sizes, strict=True))
    fields |= {name: _Map(x.data_ptr(), (ctypes.c_int64 * 4)(*x.stride()[:4])) for name, x in maps.items()}
    fields |= {name: x.data_ptr() for name, x in tables.items() if x is not None}
    return _Problem(**fields, scale=call.scale)


def _run(function: str, kernel_size: int, problem: _Problem) -> None:
    if getattr(library(kernel_size), function)(ctypes.byref(problem)):
        raise MemoryError(f"no memory for the CPU kernel of neighborhood attention ({function})")


forward = make_operator(
    "neighborhood_attention_2d", _forward, _backward, empty_sums=_empty_sums, keep_output=False, device_types="cpu"
)
