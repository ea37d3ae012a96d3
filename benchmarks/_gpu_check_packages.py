#!/usr/bin/env python
"""Collect what benchmarks/gpu_check.sh needs beside PyTorch and its like: FOLDER/packages.tar.gz, packages unpacked.

    python benchmarks/_gpu_check_packages.py FOLDER

Run it where PyPI can be reached; the Python of $TARGET_PYTHON (default 3.12) on Linux and x86-64 is served. Versions
are those that pyproject.toml and requirements/ ask for, Detectron2 as tools/setup_env.py installs it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
setup_env: Any = import_module("setup_env")

# Packages that a machine with a GPU has: large ones, and what comes with them; see gpu_check.sh.
THERE = {
    *("torch", "torchvision", "opencv-python-headless", "scipy", "pillow", "matplotlib", "tensorboard", "safetensors"),
    *("tabulate", "cloudpickle", "tqdm", "packaging", "fvcore", "iopath"),
}
# With code for one Python and processor.
COMPILED = ("numpy", "pycocotools", "shapely", "hotcoco")
# Without; the first two are only in source form, the others are what they need.
PURE = ("fvcore", "iopath", "antlr4-python3-runtime==4.9.*", "portalocker", "imgviz")
LARGEST = 60e6


def requirements() -> list[str]:
    """Requirements of pyproject.toml for the packages that travel."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^    "([^"]+)",', text.split("dependencies = [", 1)[1].split("\n]", 1)[0], re.MULTILINE)
    return [one for one in listed if re.split(r"[^\w.-]", one)[0] not in THERE]


def collect(folder: Path) -> Path:
    """Write the archive.

    Raises:
        SetupError: A package can't be had, or the archive is too large.
    """
    target = os.environ.get("TARGET_PYTHON", "3.12")
    with tempfile.TemporaryDirectory() as name:
        work, site = Path(name), Path(name, "site")
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        compiled = [one for one in requirements() if one.startswith(COMPILED)]
        pure = [one for one in requirements() if not one.startswith(COMPILED)]
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)]
        options = ["--quiet", "--no-deps", "--target", site, "--only-binary=:all:", "--implementation=cp"]
        versions = [f"--python-version={target}", "--platform=manylinux2014_x86_64", *platforms]
        setup_env.pip(python, *options, *versions, *compiled, what="packages with compiled code")
        setup_env.pip(python, "--quiet", "--upgrade", "wheel", "setuptools<82", what="setuptools")
        # Built from a copy, because a build leaves files behind. Only its metadata are needed: the entry points.
        source = work / "source"
        source.mkdir()
        for own in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / own, source)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", work / "pure", *PURE, *pure, source]
        setup_env.pip(python, *options, what="packages in Python")
        setup_env.install_without_dependencies(python)
        setup_env.install_detectron2(work / "venv", python)
        installed = Path(setup_env.probe(python)["purelib"])
        for path in [*(work / "pure").iterdir(), *_of_no_deps(installed)]:
            if path.is_dir():
                shutil.copytree(path, site / path.name, dirs_exist_ok=True)
            else:
                shutil.copy(path, site)
        # Read by gpu_check.sh.
        (site / "target-python").write_text(f"{target}\n")
        folder.mkdir(parents=True, exist_ok=True)
        return _pack(site, folder / "packages.tar.gz")


def _of_no_deps(installed: Path) -> list[Path]:
    names = ("detectron2", "sal_detectron2", "panopticapi", "cityscapesscripts")
    return [path for path in installed.iterdir() if path.name.lower().startswith(names)]


def _pack(site: Path, archive: Path) -> Path:
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w:gz") as file:
        for path in sorted(site.iterdir()):
            file.add(path, path.name, filter=lambda info: None if _unneeded(info.name) else info)
    size = partial.stat().st_size
    if size > LARGEST:
        raise setup_env.SetupError(f"{partial} has {size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")
    partial.replace(archive)
    return archive


def _unneeded(name: str) -> bool:
    parts = name.split("/")
    return "__pycache__" in parts or parts[-1] == "bin" or ("tests" in parts and parts[0] != "setuptools")


def main() -> int:
    """Collect, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where packages.tar.gz is written")
    try:
        archive = collect(parser.parse_args().folder)
    except (setup_env.SetupError, subprocess.SubprocessError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
