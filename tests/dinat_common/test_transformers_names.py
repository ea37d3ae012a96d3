import json

import pytest
import torch

from dinat_common.transformers_names import DINAT_NAMES, dinat_from_transformers
from dinat_common.weights import CheckpointError
from tests.conftest import ROOT

RECIPE = json.loads((ROOT / "tests" / "parity" / "transformers.json").read_text())


@pytest.mark.parametrize("model", RECIPE["models"])
def test_all_names_of_the_library_go_there_and_back(model):
    state = {name: torch.randn(shape) for name, shape in RECIPE["models"][model]["state"].items()}
    native = dinat_from_transformers(state)
    back = DINAT_NAMES.to_transformers(native)
    expected = {name.removeprefix("dinat."): value for name, value in state.items()}
    assert back.keys() == expected.keys()
    assert all(back[name].equal(value) for name, value in expected.items())
    assert sum(value.numel() for value in native.values()) == sum(value.numel() for value in state.values())


def test_what_is_unknown_or_incomplete_is_named():
    with pytest.raises(CheckpointError, match=r"head\.scale\.weight: not a name in the authors' DiNAT"):
        DINAT_NAMES.to_transformers({"head.scale.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"layer_scale_parameters: expected gamma1 and gamma2, found only gamma2"):
        DINAT_NAMES.to_transformers({"levels.0.blocks.1.gamma2": torch.zeros(1)})
