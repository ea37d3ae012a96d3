"""docs/troubleshooting.md lists every message that a user can meet, and says what to do about it.

Messages for users are those of the project's own exception classes (in mask2former all derive from `UserError`),
complaints of command lines, and messages that end a program. ValueError and TypeError are for programmers.
"""

import ast
import builtins
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("dinat_backbone", "dinat_common", "mask2former", "train_net.py", "tools", "demo", "datasets")
OTHER_ERRORS = frozenset({"ArgumentTypeError", "MemoryError"})
# Sections of a config, as they begin a key in a message.
SECTIONS = ("DATALOADER.", "DATASETS", "INPUT.", "MODEL.", "SOLVER.", "TEST.")
# Number of letters; shorter pieces of a message say nothing.
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


BUILTIN = frozenset(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
)


@cache
def subclasses(roots: frozenset[str]) -> frozenset[str]:
    """Names of the project's classes that derive from one of these, directly or not."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found: frozenset[str] = frozenset()
    while more := {name for name in bases if bases[name] & (roots | found)} - found:
        found |= more
    return found


def for_users(call: ast.Call) -> bool:
    name = name_of(call.func)
    ends_program = name in ("error", "exit") and isinstance(call.func, ast.Attribute)
    return name in subclasses(BUILTIN) | OTHER_ERRORS or (
        ends_program and name_of(call.func.value) in ("parser", "sys")
    )


def messages(wanted: Callable[[ast.Call], bool]) -> Iterator[tuple[str, list[str]]]:
    """Place and fixed pieces of the message of each call that is wanted."""
    for path, tree in trees().items():
        variables = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and call.args and wanted(call):
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
        for place, found in messages(for_users)
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
def test_classes_are_found_by_their_bases(name):
    assert name in subclasses(frozenset({"UserError"})) & subclasses(BUILTIN)


def test_errors_about_the_config_are_for_users():
    """ValueError and TypeError, which keep their traceback, name no config key."""
    found = messages(lambda call: name_of(call.func) in ("ValueError", "TypeError"))
    assert [place for place, message in found if any(section in " ".join(message) for section in SECTIONS)] == []


def test_pieces_of_a_message():
    source = 'raise ConfigError(f"{key} is {value!r}: expected one of " f"{names}" if names else "there is none")'
    (statement,) = ast.parse(source).body
    assert isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call)
    assert pieces(statement.exc.args[0]) == ["expected one of"]
    assert is_in(["expected one of", "but not"], "a: expected one of b, but not c")
    assert not is_in(["but not", "expected one of"], "a: expected one of b, but not c")
