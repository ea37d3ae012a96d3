"""Links and pictures of the documents lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PICTURES = (".png", ".jpg")
# Pictures of docs that a tool writes in a run which the document shows.
OF_TOOLS = {"fine_tuning_losses.png": "mask2former/engine/metrics_log.py"}


def links(document: Path) -> list[str]:
    """Targets of the links in a document, without those in examples of code, and without web addresses."""
    text = re.sub(r"`[^`\n]+`(?!\])", "", FENCE.sub("", document.read_text(encoding="utf-8")))
    return [target for target in LINK.findall(text) if "://" not in target]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    broken = []
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_there_are_links():
    assert sum(len(links(document)) for document in DOCUMENTS) > 50


def test_anchors(tmp_path):
    document = tmp_path / "a.md"
    document.write_text(
        "# One: `tools/a.py`\n\n```\n# no heading\n```\n## A [link](b.md), and_more\n", encoding="utf-8"
    )
    assert anchors(document) == {"one-toolsapy", "a-link-and_more"}


def test_every_picture_is_drawn_by_a_script():
    """Each is shown in a document, and its name (or how it begins) stands in a script of docs, or a tool writes it."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.py")))
    shown = {(document.parent / target).resolve() for document in DOCUMENTS for target in links(document)}
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in PICTURES]
    assert pictures
    for picture in pictures:
        start, _, rest = picture.stem.partition("_")
        drawn = picture.name in scripts or (f'f"{start}_{{' in scripts and f'"{rest}"' in scripts)
        of_tool = OF_TOOLS.get(picture.name)
        assert drawn or (of_tool and (ROOT / of_tool).is_file()), f"{picture.name}: nothing writes it"
        assert picture.resolve() in shown, f"{picture.name}: no document shows it"
