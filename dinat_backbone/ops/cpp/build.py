"""Builds the CPU kernel for a kernel size, at its first use, with the machine's C++ compiler; no other tool is needed.

Libraries stay in PyTorch's folder for extensions (`TORCH_EXTENSIONS_DIR`, by default in the user's cache). Their names
tell source, command, compiler and processor, so that a folder can be shared by machines, and nothing is ever out of
date. They appear under their names complete or not at all: processes that build at once do not disturb each other.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SWITCH = "DINAT_COMPILED_ATTENTION"
_FOLDER = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_SECONDS = 300
_logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernel can't be had on this machine; the text says why."""


@cache
def why_not_buildable(kernel_size: int) -> str | None:
    """Build and load the library for a kernel size; return None, or why there is none."""
    if os.environ.get(SWITCH) == "0":
        return f"it is switched off by {SWITCH}=0"
    try:
        library(kernel_size)
    except BuildError as error:
        return str(error)
    return None


@cache
def library(kernel_size: int) -> ctypes.CDLL:
    """The loaded library for a kernel size, built if this machine has none yet.

    Raises:
        BuildError: no compiler, or it failed, or the folder can't be written, or the library not be loaded.
    """
    try:
        path = _build(kernel_size)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"building the CPU kernel failed: {error}") from error
    loaded.backward_parts.restype = ctypes.c_int64
    return loaded


def _build(kernel_size: int) -> Path:
    command = [*_compiler(), *_FLAGS, f"-DKERNEL_SIZE={kernel_size}"]
    # What the compiler defines names its version and the instructions of this processor.
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    digest = hashlib.sha256("\0".join([*command, macros, *(path.read_text() for path in sources)]).encode())
    folder = _cache_folder() / "dinat_backbone"
    target = folder / f"neighborhood_attention_{kernel_size}_{digest.hexdigest()[:16]}.so"
    if not target.exists():
        _logger.info("building the CPU attention kernel for kernel size %d in %s", kernel_size, folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / target.name
            _run([*command, str(_FOLDER / "neighborhood_attention.cpp"), "-o", str(built)])
            os.replace(built, target)
    return target


def _compiler() -> list[str]:
    """The command in `CXX`, or the first compiler found."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in [chosen[0]] if chosen else _COMPILERS:
        if shutil.which(name):
            return chosen or [name]
    raise BuildError(f"no C++ compiler found (looked for {', '.join(chosen[:1] or _COMPILERS)})")


def _cache_folder() -> Path:
    """As `torch.utils.cpp_extension` has it, which is slow to import and warns about CUDA."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(caches, "torch_extensions"))


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise BuildError(f"{shlex.join(command)} failed: {lines[0] if lines else f'exit status {result.returncode}'}")
    return result.stdout
