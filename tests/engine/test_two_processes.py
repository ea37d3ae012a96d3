"""Detectors, UPerNet and classifiers in two processes do what they do in one."""

import subprocess
import sys

import pytest
import torch

from ..conftest import ROOT
from ..small_models import require_equal_steps
from .two_processes import EVALUATED, TRAINED


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Folder with the results of the script, which takes about ten seconds."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.two_processes", folder]
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def steps(output):
    """Weights before and after a step, and losses, by process and model."""
    return {path.parent.name + path.stem: torch.load(path) for path in output.glob("*/*.pth")}


@pytest.mark.parametrize("name", TRAINED)
def test_halves_of_a_batch_give_the_step_of_the_whole(steps, name):
    """Statistics of batch norms, which are part of the weights, included."""
    before, whole, losses = steps["one0"][name]
    _, halves, losses_of_halves = steps["two0"][name]
    assert any((value - before[key]).norm() > 1e-3 for key, value in whole.items())
    require_equal_steps(before, whole, halves)
    assert losses_of_halves == pytest.approx(losses, rel=1e-4)
    counts = [key for key in whole if key.endswith("num_batches_tracked")]
    assert all(halves[key] == 1 for key in counts) and (len(counts) > 0) == (name in ("cascade", "upernet"))


@pytest.mark.parametrize("case", ["5 of 5", "3 of 5"])
def test_batch_norms_of_unequal_shares(steps, case):
    """Also of a process without an image."""
    _, expected, _ = steps["one0"][case]
    for process in ("two0", "two1"):
        for key, value in steps[process][case][1].items():
            most = float(expected[key].abs().max())
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4 * most, msg=key)


def test_both_have_the_same_weights_also_if_one_has_nothing_to_find(steps):
    first, second = steps["two0"], steps["two1"]
    assert first.keys() == second.keys() and any("without" in name for name in first)
    trained = {name: found for name, found in first.items() if not name.endswith("of 5")}
    for name, (before, after, _) in trained.items():
        assert all(value.equal(second[name][1][key]) for key, value in after.items()), name
        assert any((value - before[key]).norm() > 1e-3 for key, value in after.items()), name
        assert all(value.isfinite().all() for value in after.values()), name


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluations_find_the_same(output, name):
    def files(folder):
        paths = [path for path in (output / folder / name).rglob("*") if path.is_file() and "records" not in path.parts]
        return {path.relative_to(output / folder): path.read_bytes() for path in paths if path.name != "speed.json"}

    alone = files("one")
    assert any(path.name == "metrics.json" for path in alone) and len(alone) > 1
    assert files("two") == alone
