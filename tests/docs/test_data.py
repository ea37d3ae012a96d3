"""docs/data.md names all problems that `tools/dataset.py inspect` finds, and its examples are valid."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mask2former.data import problems
from mask2former.data.datasets.custom import FORMATS, read_classes

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
PROBLEMS = [value for value in vars(problems).values() if isinstance(value, problems.Problem)]


def rows() -> list[list[str]]:
    """The table of problems: cells with their subject, the blocking ones, and the notes."""
    table = DOCUMENT.split("| subject | blocking | notes |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[1:]]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.text)
def test_every_problem_is_named(problem):
    cells = [row[1 if problem.blocks else 2] for row in rows()]
    assert any(problem.text in re.sub(r" \([a-z][^)]*\)", "", cell).split("; ") for cell in cells)


def test_examples_of_json_are_json():
    examples = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert {"images", "annotations", "categories"} <= json.loads(example).keys()


def test_the_list_of_classes_can_be_read():
    (example,) = re.findall(r"```yaml\n(- \{.*?)```", DOCUMENT, re.DOTALL)
    assert [c.id for c in read_classes(yaml.safe_load(example), "data.md")] == [1, 2, 20]


@pytest.mark.parametrize("name", FORMATS)
def test_keys_of_entries(name):
    needed, optional = FORMATS[name].needed, FORMATS[name].optional
    (row,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` |")]
    _, first, second = [set(re.findall(r"`(\w+)`", cell)) for cell in row.strip("|").split("|")]
    assert (first, second) == (set(needed), set(optional))
