"""Builds the CPU kernel for a kernel size at its first use, with the C++ compiler of the machine and no other tool.

The libraries are kept in PyTorch's folder for extensions (`TORCH_EXTENSIONS_DIR`, by default in the user's cache). A
file name contains a hash of the sources, command, compiler and processor, so that machines can share a folder and no
file is ever out of date. A library is moved to its final name when it is complete, so that several processes can build
at the same time.
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
_TIMEOUT_SECONDS = 300
_logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernel is not available on this machine; the message gives the reason."""


@cache
def why_not_buildable(kernel_size: int) -> str | None:
    """Build and load the library for a kernel size; return the reason if that fails, otherwise None."""
    if os.environ.get(SWITCH) == "0":
        return f"it is switched off by {SWITCH}=0"
    try:
        library(kernel_size)
    except BuildError as error:
        return str(error)
    return None


@cache
def library(kernel_size: int) -> ctypes.CDLL:
    """Load the library for a kernel size, and build it first if this machine does not have it yet.

    Raises:
        BuildError: There is no compiler, it failed, the folder is not writable, or the library can't be loaded.
    """
    try:
        return ctypes.CDLL(str(build(kernel_size)))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"building the CPU kernel failed: {error}") from error


def build(kernel_size: int) -> Path:
    """Return the path of the library for a kernel size, which is built if it does not exist."""
    command = [*compiler(), *_FLAGS, f"-DKERNEL_SIZE={kernel_size}"]
    # The predefined macros identify the version of the compiler and the instructions of this processor.
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    digest = hashlib.sha256("\0".join([*command, macros, *(path.read_text() for path in sources)]).encode())
    # Where `torch.utils.cpp_extension`, which is slow to import and warns about CUDA, keeps extensions.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(caches, "torch_extensions")
    folder = Path(extensions) / "dinat_backbone"
    target = folder / f"neighborhood_attention_{kernel_size}_{digest.hexdigest()[:16]}.so"
    if not target.exists():
        _logger.info("building the CPU attention kernel for kernel size %d in %s", kernel_size, folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / target.name
            _run([*command, str(_FOLDER / "neighborhood_attention.cpp"), "-o", str(built)])
            os.replace(built, target)
    return target


def compiler() -> list[str]:
    """Return the command in `CXX`, or the first compiler found."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in [chosen[0]] if chosen else _COMPILERS:
        if shutil.which(name):
            return chosen or [name]
    raise BuildError(f"no C++ compiler found (looked for {', '.join(chosen[:1] or _COMPILERS)})")


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise BuildError(f"{shlex.join(command)} failed: {lines[0] if lines else f'exit status {result.returncode}'}")
    return result.stdout
