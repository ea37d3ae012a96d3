"""Create or update the virtual environment of this checkout; ``make setup`` runs this.

Uses only the standard library, because it runs before anything is installed. Steps: a venv; the packages of
pyproject.toml with the extras in ``EXTRAS``; Detectron2 (an importable one is kept); NATTEN (optional); an import
check. A stamp in the environment records its inputs, so that a call with nothing to do returns at once. The stamp is
written last, so that the next call continues an interrupted one.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - users of an older Python see this message
    sys.exit(
        f"setup: Python 3.10 or newer is needed, but {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        "Choose one with: make setup PYTHON=/path/to/python3"
    )

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DETECTRON2_REQUIREMENT = ROOT / "requirements" / "detectron2.txt"
NO_DEPS_REQUIREMENTS = ROOT / "requirements" / "no_deps.txt"
INPUTS = (ROOT / "pyproject.toml", DETECTRON2_REQUIREMENT, NO_DEPS_REQUIREMENTS, Path(__file__).resolve())
EXTRAS = "demo,test,lint"
NATTEN = "natten>=0.21"
STAMP = "setup-stamp"  # in the environment: fingerprint of its inputs
BASE = "setup-base"  # in the environment: sys.prefix of the Python that created it; marks it as created by this script
LAYER_FILE = "_packages_of_the_base_environment.pth"

# Prints where an interpreter finds Detectron2, and its package folders, without importing torch.
PROBE = """
import importlib.metadata, importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("detectron2")
try:
    snapshot = importlib.metadata.version("sal-detectron2")
except importlib.metadata.PackageNotFoundError:
    snapshot = None
print(json.dumps({
    "detectron2": spec and spec.origin,
    "snapshot": snapshot,
    "purelib": sysconfig.get_path("purelib"),
    "site": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))],
}))
"""

# Imports that fail if versions are incompatible (torch and torchvision, NumPy, setuptools).
IMPORT_CHECK = """
import torch, torchvision, numpy, detectron2
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU, the CPU is used"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, numpy {numpy.__version__}, "
      f"detectron2 {detectron2.__version__}; {device}")
"""


class SetupError(Exception):
    """A step failed; the message says what the user can do."""


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"setup: {message}", flush=True)


def fingerprint() -> str:
    """Hash of everything the environment depends on: the inputs and the location of the checkout."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(command: list, **kwargs) -> subprocess.CompletedProcess:
    """Run ``command`` in the checkout and return the completed process, also if it fails."""
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **kwargs.pop("env", {})}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, text=True, check=False, **kwargs)


def pip(python: Path, *arguments: object, what: str) -> None:
    """Run pip install in the environment.

    Raises:
        SetupError: pip failed; the message names ``what``.
    """
    if run([python, "-m", "pip", "install", *arguments]).returncode != 0:
        raise SetupError(f"pip could not install {what} (its message is above). Fix this and run it again.")


def probe(python: Path) -> dict:
    """Run ``PROBE`` with the interpreter ``python`` and return its output."""
    result = run([python, "-c", PROBE], capture_output=True)
    if result.returncode != 0:
        raise SetupError(f"{python} does not run: {result.stderr.strip()}")
    return json.loads(result.stdout)


def works(python: Path) -> bool:
    """Whether the environment's interpreter starts and has pip; not so after an interruption or a removed Python."""
    command = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is None)"]
    return python.exists() and run(command, capture_output=True).returncode == 0


def create_environment(venv: Path) -> None:
    """Create the virtual environment ``venv`` from the running Python, replacing an existing one.

    Raises:
        SetupError: This Python cannot create one, or the folder holds something else.
    """
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{sys.executable} has no module {' and '.join(missing)}, which makes virtual environments. On Debian and "
            f"Ubuntu: apt install python3-venv. Or choose another Python: make setup PYTHON=/path/to/python3"
        )
    if venv.exists():
        if any(venv.iterdir()) and not any((venv / name).exists() for name in (BASE, "pyvenv.cfg")):
            raise SetupError(f"{venv} exists and is not a virtual environment: choose another folder with VENV=DIR")
        shutil.rmtree(venv)
    say(f"creating {venv} with Python {sys.version.split()[0]} ({sys.executable})")
    venv.mkdir(parents=True)
    (venv / BASE).write_text(sys.prefix)
    result = run([sys.executable, "-m", "venv", venv], capture_output=True)
    if result.returncode != 0:
        raise SetupError(f"python -m venv failed:\n{result.stdout}{result.stderr}".rstrip())


def layer_on_base(python: Path) -> None:
    """Make the packages of ``sys.executable`` visible in the environment if they include Detectron2."""
    base = probe(Path(sys.executable))
    own = probe(python)
    if base["detectron2"] is None or own["detectron2"] is not None:
        return
    say(f"{sys.executable} already has Detectron2 ({base['detectron2']}); its packages stay visible and it is kept")
    lines = [f"import site; site.addsitedir({path!r})" for path in base["site"]]
    (Path(own["purelib"]) / LAYER_FILE).write_text("\n".join(lines) + "\n")


def forget_requirements(folder: Path, name: str) -> None:
    """Remove the dependencies from a package's metadata, because pip would complain about them at every install."""
    for metadata in folder.glob(f"{name.replace('-', '_')}-*.dist-info/METADATA"):
        metadata.write_text(re.sub(r"^Requires-Dist:.*\n", "", metadata.read_text(), flags=re.MULTILINE))


def install_without_dependencies(python: Path) -> None:
    """Install the packages of requirements/no_deps.txt."""
    options = ("--quiet", "--no-deps", "--require-hashes")
    pip(python, *options, "-r", NO_DEPS_REQUIREMENTS, what=f"the packages of {NO_DEPS_REQUIREMENTS.name}")
    for name in re.findall(r"^([\w-]+)==", NO_DEPS_REQUIREMENTS.read_text(), re.MULTILINE):
        forget_requirements(Path(probe(python)["purelib"]), name)


def install_detectron2(venv: Path, python: Path) -> None:
    """Install the hash-checked snapshot, unless it or another Detectron2 is importable."""
    wanted = re.search(r"^sal-detectron2==(\S+)", DETECTRON2_REQUIREMENT.read_text(), re.MULTILINE)
    if wanted is None:
        raise SetupError(f"{DETECTRON2_REQUIREMENT} has no line 'sal-detectron2==VERSION'")
    found = probe(python)
    if found["detectron2"] and found["snapshot"] in (None, wanted[1]):
        say(f"Detectron2 is already installed and kept: {Path(found['detectron2']).parent}")
        return
    say("installing Detectron2 (snapshot of its main branch, checked by hash)")
    # On the same file system as site-packages, so that the package appears there at once or not at all.
    staging = venv / "detectron2-staging"
    shutil.rmtree(staging, ignore_errors=True)
    options = "--no-deps --require-hashes --only-binary=:all: --python-version 3.10 --implementation cp --abi none"
    target = ("--platform", "any", "--target", staging, "-r", DETECTRON2_REQUIREMENT)
    pip(python, "--quiet", *options.split(), *target, what="Detectron2")
    # Operators compiled for one old Python and torch: without them every Python uses the same code.
    for compiled in (staging / "detectron2").glob("_C*.so"):
        compiled.unlink()
    # pyproject.toml lists its dependencies.
    forget_requirements(staging, "sal-detectron2")
    # The metadata first: alone they do not count as installed. The wheel's top-level "tools" is left out.
    for source in [*staging.glob("sal_detectron2-*.dist-info"), staging / "detectron2"]:
        destination = Path(found["purelib"]) / source.name
        shutil.rmtree(destination, ignore_errors=True)
        source.rename(destination)
    shutil.rmtree(staging)


def install_natten(venv: Path, python: Path) -> None:
    """Try to install NATTEN. A failure is not an error, because it only costs speed."""
    # NATTEN compiles its kernels if it finds a GPU, which can take an hour: only on request, by its own variable.
    asked = bool(os.environ.get("NATTEN_CUDA_ARCH"))
    environment = {} if asked else {"CUDA_VISIBLE_DEVICES": ""}
    say(f"installing NATTEN (optional; {'with its CUDA kernels' if asked else 'pure Python'})")
    log = venv / "natten-install.log"
    with log.open("w") as stream:
        command = [python, "-m", "pip", "install", "--no-build-isolation", NATTEN]
        result = run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if result.returncode != 0:
        say(f"NATTEN could not be installed: it is optional, the built-in attention backends are used ({log})")


def set_up(venv: Path, chosen_python: bool) -> None:
    """Bring the environment in the folder ``venv`` up to date.

    Args:
        venv: Folder of the environment.
        chosen_python: Whether the user chose the running Python; an environment of another one is then replaced.

    Raises:
        SetupError: A step failed.
    """
    python, stamp, base = venv / "bin" / "python", venv / STAMP, venv / BASE
    usable = works(python) and not (chosen_python and base.exists() and base.read_text() != sys.prefix)
    if usable and stamp.exists() and stamp.read_text() == fingerprint():
        say(f"{venv} is up to date")
        return
    start = time.monotonic()
    if not usable:
        create_environment(venv)
    stamp.unlink(missing_ok=True)
    layer_on_base(python)
    say("installing the packages of pyproject.toml from PyPI (1 to 10 minutes and about 6 GB of disk the first time)")
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    # NATTEN is built with this environment's torch and needs wheel.
    pip(python, *quiet, "wheel", "-e", f"{ROOT}[{EXTRAS}]", what="the dependencies")
    install_without_dependencies(python)
    install_detectron2(venv, python)
    install_natten(venv, python)
    result = run([python, "-W", "ignore", "-c", IMPORT_CHECK], stdout=subprocess.PIPE)
    if result.returncode != 0:
        raise SetupError(
            "the installed packages can't be imported (the reason is above). `make clean-env setup` starts over."
        )
    say(result.stdout.strip().splitlines()[-1])
    stamp.write_text(fingerprint())
    say(f"{venv} is ready ({time.monotonic() - start:.0f} s)")


def main() -> int:
    """Parse the command line and set up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--venv",
        type=lambda text: Path(os.path.expanduser(text)),
        default=ROOT / ".venv",
        help="folder of the environment (default: .venv)",
    )
    parser.add_argument("--chosen-python", action="store_true", help="replace an environment of another Python")
    arguments = parser.parse_args()
    try:
        set_up(arguments.venv.absolute(), arguments.chosen_python)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next call continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
