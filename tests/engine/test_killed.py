"""A training that is killed at any moment, and resumed, ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..conftest import ROOT

TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


def lines(path):
    """Lines of metrics.json without the measurements of the machine."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read]


def require_equal(one, other, where=""):
    """Check that two nested contents of checkpoints are equal to the bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            # The length of metrics.json depends on the digits of measured times.
            if key not in ("files", "config"):
                require_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            require_equal(*pair, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.equal(other), where
    else:
        assert one == other or (one != one and other != other), where


def require_equal_runs(folder, other):
    """Check that two runs have left the same files, and in them the same to the bit but for times."""
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {path.name for path in other.iterdir() if "tfevents" not in path.name}
    for name in names:
        if name.endswith(".pth"):
            contents = [torch.load(place / name, weights_only=True) for place in (folder, other)]
            require_equal(*contents, name)
    assert lines(folder / "metrics.json") == lines(other / "metrics.json")
    for name in ("inference/metrics.json", "last_checkpoint", "losses.png"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.killed", folder]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def test_all_bits_are_those_of_an_uninterrupted_run(runs):
    """With accumulation, averaged and best weights, dropout, evaluations and validation losses."""
    require_equal_runs(runs / "whole", runs / "killed")
    assert [line["iteration"] for line in lines(runs / "killed" / "metrics.json")] == [1, 3, 5, 7, 8]


def test_the_interrupted_evaluation_goes_on_with_the_images_that_are_missing(runs):
    log = Path(runs, "killed", "log.txt").read_text()
    assert "1 images were predicted before" in log
    assert "metrics.json: lines after iteration -1 are dropped" in log
    assert "metrics.json: lines after iteration 2 are dropped" in log
