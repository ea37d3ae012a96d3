import json
import os
import subprocess
import sys

import numpy as np
import pytest

import mask2former.data.datasets  # noqa: F401 - registers the data sets
from mask2former.evaluation import build_evaluator

from ..conftest import ROOT
from .predictions import predict
from .test_build import config

pytestmark = pytest.mark.slow

NAMES = ("ade20k_panoptic_val", "cityscapes_fine_panoptic_val")


def files(folder):
    """Results, without what an evaluation keeps for itself."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "records" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def output(trees, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(trees)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.evaluation.machines", str(folder), *NAMES]
    processes = [
        subprocess.Popen([*command, "--machine-rank", str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        errors = process.communicate(timeout=240)[1].decode()
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("layout", "main"), [("shared", ""), ("apart", "machine0")])
def test_two_machines_that_were_interrupted_measure_and_write_what_one_does(
    output, trees, tmp_path, monkeypatch, name, layout, main
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    evaluator = build_evaluator(config("PANOPTIC", "INSTANCE", "SEMANTIC"), name, tmp_path)
    evaluator.reset()
    evaluator.process(*predict(name, np.random.default_rng(8)))
    alone = evaluator.evaluate()

    first, second = (json.loads((output / f"{rank}.json").read_text())[name][layout] for rank in range(2))
    assert first["left"] == second["left"] == 2  # of four
    assert second["results"] is None
    assert json.dumps(first["results"]) == json.dumps(alone)
    assert files(output / layout / main / name) == files(tmp_path)
    assert len(files(tmp_path)) >= 10


def test_the_machine_that_is_not_the_main_one_keeps_only_its_own(output):
    assert 0 < len(files(output / "apart" / "machine1")) < len(files(output / "apart" / "machine0"))


def test_much_is_sent_in_rounds(output):
    assert json.loads((output / "0.json").read_text())["rounds"] == ["1a", "1b", "1c"]
    assert json.loads((output / "1.json").read_text())["rounds"] == []
