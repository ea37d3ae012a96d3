"""docs/troubleshooting.md names every message that a user can meet, and says what to do about it.

Where the line is drawn: all errors of the project's own classes (ConfigError, CheckpointError, ...) are for users, as
are complaints of command lines and what ends a program. ValueError and the like are for programmers who call a function
in a wrong way, but for those in `FOR_USERS`: values that come from a config or from data files end there.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("dinat_backbone", "mask2former", "train_net.py", "tools", "demo", "datasets")
OTHER_ERRORS = frozenset({"ArgumentTypeError", "MemoryError"})
# Modules, and their functions, whose ValueErrors are about a config or about files. "*": all functions.
FOR_USERS = {
    "dinat_backbone/dinat.py": "*",
    "dinat_backbone/neighborhood_attention.py": "*",
    "dinat_backbone/ops/dispatch.py": "_choose",
    "mask2former/export/network.py": "*",
    "mask2former/maskformer_model.py": "*",
    "mask2former/modeling/meta_arch/mask_former_head.py": "*",
    "mask2former/modeling/pixel_decoder/msdeformattn.py": "*",
    "mask2former/modeling/pixel_decoder/ops/ms_deform_attn.py": "check_backend _choose",
    "mask2former/solver.py": "*",
    "mask2former/test_time_augmentation.py": "*",
}
# Letters; shorter pieces of a message tell nothing.
SHORTEST = 4


def files() -> Iterator[Path]:
    for place in CODE:
        path = ROOT / place
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def texts(node: ast.expr) -> list[str]:
    """The fixed pieces of a message: those between what varies."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    if isinstance(node, ast.IfExp):
        return texts(node.body) or texts(node.orelse)
    return []


def pieces(message: ast.expr) -> list[str]:
    """The telling fixed pieces of a message, in their order, without signs at their ends."""
    lines = [line for text in texts(message) for line in text.split("\n")]
    stripped = (" ".join(line.split()).strip(" :;,.()'\"") for line in lines)
    return [plain(piece) for piece in stripped if len(piece) >= SHORTEST]


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}


@cache
def own_errors() -> frozenset[str]:
    """Names of the project's classes of errors."""
    classes = (node.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return frozenset(name for name in classes if name.endswith("Error"))


def for_users(path: Path, function: str, call: ast.Call, own: frozenset[str]) -> bool:
    name = name_of(call.func)
    if name in own or name in OTHER_ERRORS:
        return True
    if name == "ValueError":
        functions = FOR_USERS.get(path.relative_to(ROOT).as_posix(), "").split()
        return functions == ["*"] or function in functions
    ends_program = name in ("error", "exit") and isinstance(call.func, ast.Attribute)
    return ends_program and name_of(call.func.value) in ("parser", "sys")


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """All calls, with the function that they are in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield function, node
        yield from calls(node, node.name if isinstance(node, ast.FunctionDef) else function)


def messages() -> Iterator[tuple[str, list[str]]]:
    """Place and fixed pieces of each message for users."""
    own = own_errors()
    for path, tree in trees().items():
        variables = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for function, call in calls(tree):
            if call.args and for_users(path, function, call, own):
                message = call.args[0]
                found = pieces(variables.get(message.id, message) if isinstance(message, ast.Name) else message)
                if found:
                    yield f"{path.relative_to(ROOT)}:{call.lineno}", found


def plain(text: str) -> str:
    """A text without Markdown's signs, and with single spaces."""
    return " ".join(re.sub(r"\\([|*_<>`\[\]])", r"\1", text).replace("`", "").split())


def is_in(found: Sequence[str], line: str) -> bool:
    """Whether a line has the pieces of a message in their order."""
    place = 0
    for piece in found:
        start = line.find(piece, place)
        if start < 0:
            return False
        place = start + len(piece)
    return True


def missing(document: str) -> list[str]:
    """The messages that no line of a document names."""
    lines = [plain(line) for line in document.splitlines()]
    return [
        f"{place}: {' ... '.join(found)}"
        for place, found in messages()
        if not any(is_in(found, line) for line in lines)
    ]


def test_every_message_is_listed():
    lacking = missing((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert not lacking, "not in docs/troubleshooting.md:\n" + "\n".join(lacking)


def test_an_empty_document_lacks_them_all():
    lacking = missing("")
    assert len(lacking) > 200
    assert any("config file not found" in line for line in lacking)


@pytest.mark.parametrize(
    "name",
    ["ConfigError", "CheckpointMismatchError", "DownloadError", "AnnotationError", "EvaluationError", "VideoError"],
)
def test_classes_are_found(name):
    assert name in own_errors()


def test_pieces_of_a_message():
    source = 'raise ConfigError(f"{key} is {value!r}: expected one of " f"{names}" if names else "there is none")'
    (statement,) = ast.parse(source).body
    assert isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call)
    assert pieces(statement.exc.args[0]) == ["expected one of"]
    assert is_in(["expected one of", "but not"], "a: expected one of b, but not c")
    assert not is_in(["but not", "expected one of"], "a: expected one of b, but not c")
