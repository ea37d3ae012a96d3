"""docs/models.md has the tables of the model zoo, and a command for each kind of model."""

import re

import pytest

from mask2former.model_zoo import MODELS
from tests.conftest import ROOT, load_script

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_model_zoo():
    assert load_script("docs/list_models.py").with_tables(PAGE) == PAGE
    assert len(re.findall(r"^\| \[`", PAGE, re.MULTILINE)) == len(MODELS) == 67


@pytest.mark.parametrize("group", ["classification", "detection", "upernet", "mask2former"])
def test_commands_name_config_and_checkpoint_of_one_model(group):
    commands = re.findall(r"--config-file (\S+) \\\n +MODEL\.WEIGHTS (\S+)", PAGE)
    known = {(str(model.config_file), model.checkpoint) for model in MODELS.values() if model.group == group}
    assert len(known & set(commands)) == 1
