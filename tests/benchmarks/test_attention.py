"""The attention benchmark measures the calls of a model, and all programs compute the same."""

import json

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture
def script(load_benchmark):
    return load_benchmark("attention")


def test_cases_are_the_layers_of_the_settings(script):
    cases = list(script.cases("large", (640, 640)))
    assert sum(case.layers for case in cases) == 30
    assert [str(case) for case in cases[:3]] == ["large 160x160 d1", "large 160x160 d14", "large 80x80 d1"]
    # The map is padded to kernel size * dilation.
    assert str(next(c for c in script.cases("large", (512, 512)) if c.dilation == 14)) == "large 154x154 d14"


@pytest.mark.parametrize("name", ["gather", "dense"])
def test_programs_compute_the_same(script, name):
    case = next(c for c in script.cases("large", (160, 192)) if c.dilation == 3)
    inputs = script.Inputs(case, torch.float32, torch.device("cpu"))
    assert script.measure(inputs, name, False, 1)["diff"] < 1e-5


def test_a_run_saves_table_numbers_and_chart(script, tmp_path):
    arguments = "--models mini --images 64 64 --dilations 28 --dtypes float32 --repeats 1 --passes forward".split()
    arguments += ["--peers", "tiled", "natten", "--output", str(tmp_path / "a")]
    assert script.main([*arguments, "--threads", str(torch.get_num_threads())]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["case"] == "mini 196x196 d28"
    assert row["tiled / ours"] == pytest.approx(row["tiled ms"] / row["ours ms"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
