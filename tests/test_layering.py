"""Who may import whom, and what importing may do."""

import ast
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGES = ("dinat_backbone", "mask2former")
SCRIPTS = ("train_net", "demo", "tools", "datasets", "examples", "benchmarks", "tests")
# What reads the network or opens sockets; torch.hub and Detectron2's model zoo download when called.
NETWORK = (
    *("requests", "urllib.request", "urllib.error", "http", "socket", "ftplib"),
    *("torch.hub", "detectron2.model_zoo"),
)
MAY_USE_NETWORK = {
    # Asks the system for a free port of this machine, for the worker processes to meet at.
    "mask2former.engine.launch": ("socket",),
    # Asks the system whether an address of this machine is free.
    "mask2former.web.address": ("socket",),
    # Downloads the weights of a URL that a user gave.
    "mask2former.checkpoint.download": ("urllib.error", "urllib.request", "http.client"),
}
# Module (prefix) -> parts of our own that it must not import.
FORBIDDEN = {
    "dinat_backbone": ("mask2former",),
    "mask2former": ("dinat_backbone",),
    "mask2former.data": ("mask2former.modeling", "mask2former.evaluation", "mask2former.maskformer_model"),
    "mask2former.evaluation": ("mask2former.modeling", "mask2former.data", "mask2former.maskformer_model"),
    "mask2former.modeling": ("mask2former.data", "mask2former.evaluation", "mask2former.config", "mask2former.engine"),
}
# These import nothing of ours, so that they can be read, tested and reused alone.
PURE = (
    "mask2former.modeling.losses",
    "mask2former.modeling.transformer_decoder.position_encoding",
)
# Of ours, the modules of these packages import only each other.
CLOSED = ("dinat_backbone.ops", "mask2former.modeling.pixel_decoder.ops")
# Builders, mapper factories and `from_config` are the only functions that see `cfg`.
CFG_READERS = (
    "from_config",
    "build_",
    "_build_",
    "add_",
    "_add_",
    "setup_cfg",
    "parameter_groups",
)


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Absolute names of all that a module imports, wherever in the file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_imports_respect_the_layers(name):
    imported = imports(name, MODULES[name])
    for prefix, forbidden in FORBIDDEN.items():
        if within(name, (prefix,)):
            assert {i for i in imported if within(i, forbidden)} == set()
    assert {i for i in imported if within(i, SCRIPTS)} == set()
    network = {i for i in imported if within(i, NETWORK)}
    assert {i for i in network if not within(i, MAY_USE_NETWORK.get(name, ()))} == set()
    if name in PURE:
        assert {i for i in imported if within(i, PACKAGES)} == set()
    for package in CLOSED:
        if within(name, (package,)):
            assert {i for i in imported if within(i, PACKAGES) and not within(i, (package,))} == set()


@pytest.mark.parametrize("name", MODULES)
def test_path_is_not_edited_and_cfg_stays_with_the_builders(name):
    tree = ast.parse(MODULES[name].read_text())
    assert "sys.path" not in {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if within(name, ("mask2former.modeling", "dinat_backbone")):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "cfg" in {a.arg for a in node.args.args}:
                assert node.name.startswith(CFG_READERS), f"{name}.{node.name} reads cfg"


def test_these_modules_exist():
    assert set(PURE) <= set(MODULES)


IMPORT_ALL = """
import builtins, importlib, os, pathlib, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"importing opened a socket: {args}")

socket.socket.connect = refuse
import torch, torchvision, scipy.optimize, detectron2.data, detectron2.modeling, detectron2.projects.point_rend
import detectron2.projects.deeplab, detectron2.engine, detectron2.evaluation
opened = []

def watch(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(sys.argv[1]):
        # The environment may lie in the checkout: what libraries read is theirs.
        if "site-packages" not in args[0]:
            opened.append(args[0])

sys.addaudithook(watch)
for name in sys.argv[2:]:
    importlib.import_module(name)
code = (".py", ".pyc", ".so")
print([path for path in opened if not path.endswith(code) and "__pycache__" not in path and os.path.isfile(path)])
"""


def test_importing_everything_opens_no_socket_and_reads_no_data():
    """Only Python files of ours are read, and tables that a package ships."""
    # Kernels are imported by their backends when they are called: not everybody has Triton.
    has_triton = util.find_spec("triton") is not None
    importable = [name for name, path in MODULES.items() if has_triton or "triton" not in imports(name, path)]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(ROOT), *importable],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]"
