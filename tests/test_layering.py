"""Who may import whom, and what importing may do."""

import ast
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGES = ("dinat_backbone", "dinat_common", "mask2former")
# The one package that the other two import; these meet in Detectron2's registries alone.
SHARED = "dinat_common"
SCRIPTS = ("train_net", "demo", "tools", "datasets", "examples", "benchmarks", "tests")
# What reads the network or opens sockets; torch.hub and Detectron2's model zoo download when called.
NETWORK = (
    *("requests", "urllib.request", "urllib.error", "http", "socket", "ftplib"),
    *("torch.hub", "detectron2.model_zoo"),
)
MAY_USE_NETWORK = {
    # Asks the system whether an address of this machine is free.
    "mask2former.web.page": ("socket",),
    # Connects the processes of one run, as PyTorch does.
    "mask2former.engine.watch": ("socket",),
    # Downloads the weights of a URL that a user gave.
    "dinat_common.download": ("urllib.error", "urllib.request", "http.client"),
}
# Imports go inwards only: a module imports from its own ring and from those before it. The longest prefix counts.
RINGS = (
    (
        "dinat_backbone",
        "dinat_common",
        "mask2former.config",
        "mask2former.maskformer_model",
        "mask2former.modeling",
        "mask2former.solver",
        "mask2former.tasks",
        "mask2former.utils",
    ),
    (
        "mask2former.checkpoint",
        "mask2former.data",
        "mask2former.engine",
        "mask2former.evaluation",
        "mask2former.model_zoo",
        "mask2former.test_time_augmentation",
    ),
    (
        "mask2former",
        "mask2former.analysis",
        "mask2former.compat",
        "mask2former.data.custom",
        "mask2former.export",
        "mask2former.prediction",
        "mask2former.video",
        "mask2former.web",
    ),
)
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


def module_of(name: str) -> str:
    """The module of ours that an imported name belongs to."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def ring(name: str) -> int:
    places = [(len(prefix), number) for number, ring in enumerate(RINGS) for prefix in ring if within(name, (prefix,))]
    return max(places)[1]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_inwards(name):
    imported = imports(name, MODULES[name])
    own = {module_of(i) for i in imported if within(i, PACKAGES)}
    # `from package import module` names the package as well.
    own -= {i for i in own if any(other.startswith(i + ".") for other in own)}
    assert {i for i in own if ring(i) > ring(name)} == set()
    assert {i for i in own if i.split(".")[0] not in (name.split(".")[0], SHARED)} == set()
    assert {i for i in imported if within(i, SCRIPTS)} == set()
    network = {i for i in imported if within(i, NETWORK)}
    assert {i for i in network if not within(i, MAY_USE_NETWORK.get(name, ()))} == set()


def test_every_entry_of_the_rings_exists():
    assert {prefix for ring in RINGS for prefix in ring} <= set(MODULES)


# Objects whose attributes are set from outside by design: config nodes, Detectron2's `Instances`, the context of an
# autograd function, settings of other libraries, and a method of transformers that fails for folders.
SET_FROM_OUTSIDE = frozenset({"cfg", "node", "head", "instances", "result", "ctx", "options", "torch", "AutoBackbone"})


def assigned_roots(tree: ast.AST) -> set[str]:
    """Names of the objects to whose attributes a file assigns, and setattr calls."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            root = node.value
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            roots.add(root.id if isinstance(root, ast.Name) else ast.unparse(root))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr", "object.__setattr__"):
            roots.add(ast.unparse(node))
    return roots


def own_files() -> list[Path]:
    scripts = [path for folder in ("tools", "demo", "datasets", "examples") for path in (ROOT / folder).rglob("*.py")]
    return [*MODULES.values(), ROOT / "train_net.py", *scripts]


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_outside_a_class_assigns_to_its_attributes(path):
    """Above all not to a model's: what a call needs is given to that call."""
    assert assigned_roots(ast.parse(path.read_text())) - {"self", "cls"} <= SET_FROM_OUTSIDE


@pytest.mark.parametrize("name", MODULES)
def test_path_is_not_edited_and_cfg_stays_with_the_builders(name):
    tree = ast.parse(MODULES[name].read_text())
    assert "sys.path" not in {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if within(name, ("mask2former.modeling", "dinat_backbone")):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "cfg" in {a.arg for a in node.args.args}:
                assert node.name.startswith(CFG_READERS), f"{name}.{node.name} reads cfg"


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


def test_an_import_shows_no_warnings_of_other_packages():
    """Detectron2 and fvcore call functions that PyTorch no longer wants."""
    words = [sys.executable, "-W", "error::FutureWarning", "-c", "import mask2former, dinat_backbone"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (0, "")
