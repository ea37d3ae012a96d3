"""The commands of docs/data.md print what the document shows."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, load_script

DOCUMENT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").replace("\\\n", "")
tool = load_script("tools/dataset.py")


def examples() -> list[tuple[str, list[str]]]:
    """Options of tools/dataset.py, and the output shown for them."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        first, *lines = block.splitlines()
        if first.startswith("$ python tools/dataset.py "):
            found.append((first.removeprefix("$ python tools/dataset.py "), lines))
    return found


def is_whole(line: str) -> bool:
    """Whether a line is complete and equal on every machine."""
    return bool(line) and not re.search(r"\.\.\.|\$S|^ |processors", line)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    formats, shapes = load_script("docs/draw_formats.py"), load_script("datasets/prepare_shapes.py")
    with pytest.MonkeyPatch.context() as patch:
        # In this process, because imports take seconds.
        patch.setattr(formats.subprocess, "run", lambda command, check: shapes.main(command[2:]))
        formats.prepare(folder)
    return folder


def run(options: str, root: Path) -> int:
    options = options.replace("$S", "/tmp/formats/shapes").replace("$C", "/tmp/formats/shape_classes")
    words = shlex.split(options.replace("/tmp/formats", str(root)))
    return tool.main([*words, "--workers", "1"])


@pytest.mark.parametrize(("options", "lines"), [e for e in examples() if "$" in e[0]], ids=lambda e: str(e)[:7])
def test_shown_is_printed(options, lines, root, capsys):
    assert run(options, root) == 0
    printed = capsys.readouterr().out.replace(str(root), "/tmp/formats").splitlines()
    place = 0
    for line in filter(is_whole, lines):
        assert line in printed[place:]
        place = printed.index(line, place) + 1
    assert place


def test_all_commands_have_an_example():
    assert {options.split()[0] for options, _ in examples()} == {"inspect", "preview", "split", "config"}
    assert len(examples()) == 11


def repaint(path: Path, change) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def outside(labels):
    labels[:20, :20] = 9
    return labels


def test_faults_are_found_as_shown(root, tmp_path, monkeypatch, capsys):
    """The five faults of the document's table are created again."""
    shutil.copytree(root / "shapes", tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    images, labels = Path("shapes/train"), Path("shapes/panoptic_semseg_train")
    repaint(labels / "000000000003.png", outside)
    repaint(labels / "000000000004.png", lambda ids: ids[::2, ::2])
    (images / "000000000005.jpg").write_bytes((images / "000000000005.jpg").read_bytes()[:3000])
    (labels / "000000000006.png").unlink()
    shutil.copyfile(images / "000000000007.jpg", "shapes/val/000001000001.jpg")
    ((options, lines),) = [example for example in examples() if "$" not in example[0]]
    assert run(options, root) == 1
    printed = capsys.readouterr().out
    cells = " ".join(line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|"))
    rows = [line.split("|")[1].strip().removesuffix(" ...") for line in lines if line.startswith("|")]
    assert len(rows) == 7
    assert [row for row in rows if row not in cells] == []
    assert lines[-1] == printed.splitlines()[-1]
