#!/usr/bin/env python
"""What Triton's kernels need on a GPU, from their compiled code: registers, spills, shared memory. Needs no GPU.

    python benchmarks/triton_kernels.py [--capability 90] [--models large mini] [--image 800 1344]
                                        [--dtypes float32 bfloat16 float16] [--output STEM]

The functions that launch the kernels run on tensors without memory, of the shapes of a whole model, and each launch
is compiled to machine code instead. Types, alignments and numbers that are 1, for which Triton makes special code, are
therefore those of a real run. A kernel that does not compile, or that needs more shared memory than a program of the
device can have, is an error. Programs per multiprocessor are limited by registers, shared memory and warps; spilled
registers cost memory accesses.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from _attention_programs import HEAD_DIM, ROOT, Case, cases
from _measure import describe, save, table
from triton.backends.compiler import GPUTarget

from dinat_backbone.ops.reference import Call
from dinat_backbone.ops.triton_kernels import launch
from mask2former.modeling.pixel_decoder.ops import triton_backend as deformable

_META = torch.device("meta")
# Of a multiprocessor with compute capability 8.0 and later: registers, warps (48 on small devices), and programs.
_REGISTERS, _WARPS, _PROGRAMS = 65536, 64, 32
# Bytes of shared memory that a program and a multiprocessor can have, by compute capability.
SHARED = {80: (166912, 167936), 86: (101376, 102400), 89: (101376, 102400), 90: (232448, 233472), 100: (232448, 233472)}
# Of each program, for the system.
_RESERVED = 1024


@dataclass
class Compiler:
    """Takes the place of Triton's driver, and of its launches.

    Attributes:
        capability: Compute capability times ten.
        only: Name of the function of the kernel that is compiled; None means all.
        kernels: Compiled kernels after the names of their functions.
    """

    capability: int
    only: str | None = None
    kernels: list[tuple[str, Any]] = field(default_factory=list)

    def get_current_target(self) -> GPUTarget:
        """The device that code is made for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """A number that no device has, because Triton keeps kernels by device."""
        return -self.capability

    def get_current_stream(self, _device: int) -> int:
        """A number for the stream, which is not used."""
        return 0

    @contextmanager
    def instead_of_launches(self) -> Generator[None, None, None]:
        """Return a context in which kernels are compiled and not launched."""
        run: Callable[..., Any] = triton.JITFunction.run

        def compile_only(kernel: Any, *args: Any, **options: Any) -> None:
            if self.only not in (None, kernel.__name__):
                return
            self.kernels.append((kernel.__name__, run(kernel, *args, **options | {"warmup": True})))

        driver: Any = triton.runtime.driver
        with mock.patch.object(triton.JITFunction, "run", compile_only), mock.patch.object(driver, "_active", self):
            yield


def compile_attention(
    compiler: Compiler, case: Case, dtype: torch.dtype, channels: int = HEAD_DIM, with_bias: bool = True
) -> None:
    """Compile forward and backward pass of a case; inputs are the parts of one projection, as in the model."""
    shape = (1, case.height, case.width, 3, case.heads, channels)
    query, key, value = torch.empty(shape, dtype=dtype, device=_META).unbind(3)
    side = 2 * case.kernel_size - 1
    rpb = torch.empty(case.heads, side, side, device=_META) if with_bias else None
    call = Call(query, key, value, rpb, case.kernel_size, case.dilation, channels**-0.5)
    with compiler.instead_of_launches():
        output, log_sum = launch.forward(call)
        launch.backward(call, output, log_sum, torch.empty_like(output), bias_needed=with_bias)


def compile_deformable(compiler: Compiler, image: tuple[int, int], dtype: torch.dtype) -> None:
    """Compile forward and backward pass of deformable attention of the published settings, all forms of it."""
    shapes = tuple((-(-image[0] // stride), -(-image[1] // stride)) for stride in (32, 16, 8))
    positions = sum(height * width for height, width in shapes)
    value = torch.empty(1, positions, 8, 32, dtype=dtype, device=_META)
    locations = torch.empty(1, positions, 8, 3, 4, 2, dtype=dtype, device=_META)
    weights, gradient = locations[..., 0], torch.empty(1, positions, 256, dtype=dtype, device=_META)
    before = torch.are_deterministic_algorithms_enabled()
    with compiler.instead_of_launches(), mock.patch.object(deformable, "value_gradient", lambda *_: value):
        deformable._forward(value, shapes, locations, weights)
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            try:
                deformable._backward(gradient, value, shapes, locations, weights)
            finally:
                torch.use_deterministic_algorithms(before)


def resources(kernel: Any, capability: int) -> dict[str, int]:
    """What a compiled kernel needs.

    Raises:
        ValueError: It needs more shared memory than a program can have.
    """
    shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
    of_program, of_all = SHARED[capability]
    if shared > of_program:
        raise ValueError(f"{kernel.name} needs {shared} bytes of shared memory, a program can have {of_program}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        (target,) = re.findall(r"\.target (\w+)", kernel.asm["ptx"])
        command = [assembler(), "-v", f"--gpu-name={target}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (
        int(re.findall(pattern, report)[-1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
    programs = min(_PROGRAMS, _WARPS // kernel.metadata.num_warps, by_registers, of_all // (shared + _RESERVED))
    return {
        "registers": registers,
        "spilled bytes": spilled,
        "shared bytes": shared,
        "warps": kernel.metadata.num_warps,
        "programs": programs,
        "warps per multiprocessor": programs * kernel.metadata.num_warps,
    }


def assembler() -> str:
    """Path of the assembler that Triton brings."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")


def measure(compiler: Compiler, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the kernels compiled since the last call; equal kernels once."""
    rows = {
        kernel.hash: facts | {"kernel": name.removesuffix("_kernel"), **resources(kernel, compiler.capability)}
        for name, kernel in compiler.kernels
    }
    compiler.kernels.clear()
    return list(rows.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=SHARED, default=90)
    parser.add_argument("--models", nargs="+", default=["large", "mini"], help="files dinat_*.yaml of configs/_base_")
    parser.add_argument("--image", nargs=2, type=int, default=(800, 1344))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/triton-kernels")
    options = parser.parse_args(arguments)
    compiler = Compiler(options.capability)
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        kind = getattr(torch, dtype)
        for model in options.models:
            # Undilated windows have code of their own; all larger dilations share theirs.
            found = list(cases(model, tuple(options.image)))
            for case in (found[0], next(case for case in found if case.dilation > 1)):
                compile_attention(compiler, case, kind)
                rows += measure(compiler, {"case": str(case), "type": dtype})
        compile_deformable(compiler, tuple(options.image), kind)
        rows += measure(compiler, {"case": "deformable attention", "type": dtype})
    facts = {"capability": options.capability, "triton": triton.__version__, "torch": torch.__version__}
    print(f"{describe(facts)}\n{table(rows)}")
    bars = {f"{r['case']} {r['type']} {r['kernel']}": {"registers": r["registers"]} for r in rows}
    stem = options.output or ROOT / "benchmarks" / "results" / "triton-kernels"
    save(stem, "Triton kernels, compiled", facts, rows, {}, bars, "registers of a thread", "linear")
    return 0


if __name__ == "__main__":
    sys.exit(main())
