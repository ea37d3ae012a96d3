"""The Triton kernels compile, agree with the reference (in the interpreter and on a GPU), and refuse some calls."""

import dataclasses
import os
import subprocess
import sys
from importlib import util

import pytest
import torch

from dinat_backbone import BackboneConfigError, neighborhood_attention_2d
from dinat_backbone.ops.dispatch import BACKENDS

from ..conftest import ROOT
from .calls import random_inputs, results

needs_triton = pytest.mark.skipif(util.find_spec("triton") is None, reason="Triton is optional and not installed")
# Shared memory of a program on small devices.
SHARED_MEMORY = 99 * 1024


@pytest.mark.slow
@needs_triton
def test_kernels_in_the_interpreter():
    """This takes a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
    # The interpreter allocates many arrays; if freed memory is kept, the system need not clear it each time.
    keep = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    script = "tests/dinat_backbone/triton_interpreted.py"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini=testpaths=", script],
        env=os.environ | keep | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "channels", "names"),
    [
        (torch.bfloat16, 32, ("expand", "forward", "query_gradient", "key_gradient", "bias_gradient")),
        (torch.float32, 32, ("key_gradient",)),
        (torch.float16, 128, ("forward",)),
    ],
    ids=str,
)
def test_kernels_compile_for_a_gpu(dtype, channels, names, monkeypatch, tmp_path):
    """The launches for compute capability 9.0 are compiled to machine code instead of run, which needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dinat_backbone.ops.reference import Call
    from dinat_backbone.ops.triton_kernels import launch

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton makes no code for CUDA devices")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", int: "i32", float: "fp32"}
    compiled = {}

    def compile_instead(kernel, *args, grid, warmup, num_warps=4, num_stages=2, **constants):
        values = dict(zip(kernel.arg_names, args, strict=False)) | constants
        signature = {name: types.get(getattr(value, "dtype", type(value))) for name, value in values.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, value in enumerate(args)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        }
        if kernel.__name__.removesuffix("_kernel") in names:
            source = ASTSource(kernel, signature, constants, aligned)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            compiled[kernel.__name__] = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    monkeypatch.setattr(triton.JITFunction, "run", compile_instead)
    inputs = random_inputs((1, 33, 36, 2, channels), 11, dtype)
    call = Call(*inputs, 11, 3, 1.0)
    output, log_sum = launch.forward(call)
    launch.backward(call, output, log_sum, torch.ones_like(output), bias_needed=True)
    assert set(compiled) == {f"{name}_kernel" for name in names}
    for kernel in compiled.values():
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED_MEMORY


@pytest.mark.parametrize(
    ("dtype", "channels", "kernel_size", "message"),
    [
        (torch.float64, 8, 3, "it computes float32, bfloat16 and float16, got torch.float64"),
        (torch.float32, 129, 3, "it takes up to 128 channels per head, got 129"),
        (torch.float32, 8, 65, "it takes kernel sizes up to 63, got 65"),
        pytest.param(
            *(torch.float32, 8, 3, "it computes on CUDA devices, got a tensor on cpu"), marks=needs_triton, id="cpu"
        ),
    ],
)
def test_refusals_say_why(dtype, channels, kernel_size, message):
    inputs = random_inputs((1, 65, 65, 1, channels), kernel_size, dtype)
    with pytest.raises(BackboneConfigError, match=f"attention backend 'triton' can't serve this call: {message}"):
        neighborhood_attention_2d(*inputs, kernel_size, 1, backend="triton")


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr("dinat_backbone.ops.triton_backend.util.find_spec", lambda name: None)
    with pytest.raises(BackboneConfigError, match="Triton is not installed"):
        neighborhood_attention_2d(*random_inputs((1, 5, 5, 1, 8), 3), 3, 1, backend="triton")


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation"),
    [
        ((2, 40, 53, 3, 32), 11, 1),
        ((1, 47, 50, 2, 32), 11, 4),
        ((1, 37, 41, 2, 64), 7, 3),
        ((1, 30, 31, 1, 128), 5, 2),
        ((1, 19, 23, 2, 20), 3, 1),
    ],
    ids=str,
)
def test_results_on_a_gpu(shape, kernel_size, dilation, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    inputs = random_inputs(shape, kernel_size, dtype, "cuda")
    expected = results(inputs, kernel_size, dilation, "reference", torch.float64)
    got = results(inputs, kernel_size, dilation, "triton")
    # Rounding of inputs to products and of results; float32 as for the other backends.
    tolerance = 2e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for result, true in zip(got, expected, strict=True):
        assert float((result - true).abs().max()) < tolerance * max(1.0, float(true.abs().max()))
    for result, again in zip(got, results(inputs, kernel_size, dilation, "triton"), strict=True):
        assert torch.equal(result, again)


@pytest.mark.gpu
@needs_triton
def test_auto_takes_it_on_a_gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    calls = []
    watched = dataclasses.replace(BACKENDS["triton"], forward=lambda call: calls.append(1) or call.value)
    monkeypatch.setitem(BACKENDS, "triton", watched)
    neighborhood_attention_2d(*random_inputs((1, 9, 9, 1, 32), 3, device="cuda"), 3, 1)
    assert calls
