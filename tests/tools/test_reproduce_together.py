"""tools/reproduce.py in several processes: all do each evaluation together, and the first one writes the report."""

import json
import os
import subprocess
import sys

import pytest

from mask2former.data.problems import Problem
from mask2former.model_zoo import SETTINGS
from tests.conftest import ROOT, config_path
from tests.processes import together
from tests.tiny import TINY
from tests.tools.test_reproduce import (  # noqa: F401 - fixtures
    SMALL,
    data,
    entries,
    evaluated,
    output_of,
    run,
    script,
    weights,
)

NAMES = ("coco-panoptic", "coco-instance")


def test_all_processes_evaluate_and_the_first_one_reports(tmp_path, weights, data, evaluated, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MASTER_PORT", "29500")

    def act(rank):
        place = tmp_path / f"machine{rank}"
        status = run(place, weights, "--settings", *NAMES)
        environment = script._environment()
        meeting = environment["MASTER_PORT"], environment["TORCHELASTIC_USE_AGENT_STORE"]
        return status, [output_of(command).name for command in evaluated], meeting

    for rank in range(2):
        (tmp_path / f"machine{rank}").mkdir()
    first, second = together(tmp_path, act, 2, 1)
    assert first == second and first[:2] == (0, list(NAMES))
    assert first[2][0] != "29500" and first[2][1] == "False"
    assert [entries(tmp_path / "machine0")[name]["status"] for name in NAMES] == ["done"] * 2
    assert not (tmp_path / "machine1" / "out" / "reproduction.json").exists()
    # The results of the first process are kept by all.
    assert [report[1] for report in together(tmp_path, act, 2, 1)] == [[], []]


def test_what_one_machine_lacks_is_missing(tmp_path, weights, data, evaluated):  # noqa: F811
    def act(rank):
        if rank == 1:
            data["coco_2017_val"].add(Problem("missing", "unpack it"), "here")
        place = tmp_path / f"machine{rank}"
        place.mkdir()
        return run(place, weights, "--settings", *NAMES), [output_of(command).name for command in evaluated]

    assert together(tmp_path, act, 2, 1) == [(0, ["coco-panoptic"])] * 2
    assert "(found by process 1)" in entries(tmp_path / "machine0")["coco-instance"]["reason"]


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path, trees, deterministic):
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("coco-panoptic", "ade20k-panoptic"):
        path = (folder / SETTINGS[name].checkpoint).with_suffix(".safetensors")
        deterministic.main(["--config-file", str(config_path(name)), "--output", str(path), *TINY])
    command = [*("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "tools/reproduce.py"]
    command += ["--datasets", str(trees), "--weights", str(folder), "--output", str(tmp_path / "out")]
    command += ["--settings", "coco-panoptic", "ade20k-panoptic", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = entries(tmp_path)
    assert [found[name]["status"] for name in ("coco-panoptic", "ade20k-panoptic")] == ["done"] * 2
    assert json.loads((tmp_path / "out" / "coco-panoptic" / "inference" / "speed.json").read_text())
    assert all(entry["speed"]["processes"] == 2 for entry in found.values() if entry["status"] == "done")
