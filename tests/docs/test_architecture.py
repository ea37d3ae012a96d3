"""docs/architecture.md and the READMEs of the packages name every folder, file and backend."""

import re
from pathlib import Path

import pytest

from dinat_backbone.ops.dispatch import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("dinat_backbone", "dinat_common", "mask2former")


def folders() -> list[Path]:
    """Folders of the packages that hold Python files."""
    return sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})


def rows(column: int) -> list[str]:
    """Names in code style that begin a column of the page's tables."""
    cells = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    return [match[1] for row in cells if len(row) > column and (match := re.match(r" `([^`]+)` $", row[column]))]


def test_every_folder_has_one_line_and_every_line_a_folder():
    assert sorted(rows(1)) == sorted(path.relative_to(ROOT).as_posix() for path in folders())


def test_every_backend_has_one_row():
    listed = [name for name in rows(0) if name in {*BACKENDS, "auto"}]
    assert sorted(listed) == sorted({*BACKENDS, "auto"})


@pytest.mark.parametrize("folder", [path for path in folders() if (path / "README.md").exists()], ids=str)
def test_a_readme_names_every_file_and_folder_beside_it(folder):
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    entries = [line.split(":")[0] for line in lines if line.startswith("- ")]
    named = {name.rstrip("/") for entry in entries for name in re.findall("`([^`]+)`", entry)}
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    packages = {path.name for path in folders() if path.parent == folder}
    assert named == modules | packages


@pytest.mark.parametrize("package", [*PACKAGES, "mask2former/modeling", "mask2former/data", "mask2former/evaluation"])
def test_these_packages_have_a_readme(package):
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
