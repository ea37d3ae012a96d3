import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.engine import DeviceError, LaunchError, available_device, launch

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = SCRIPT.parents[2]


def start(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


def check_facts(folder, local):
    facts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, fact in enumerate(facts):
        expected = {"rank": rank, "local": local[rank], "world": 2, "sum": 3.0, "gathered": [0, 10]}
        assert {key: fact[key] for key in expected} == expected
    return facts


def test_processes_of_a_machine_share_its_threads_and_hand_over_errors(tmp_path):
    finish(start(SCRIPT, tmp_path, "--num-gpus", "2", "--fail"))
    facts = check_facts(tmp_path, local=[[0, 2], [1, 2]])
    alone = (tmp_path / "threads.txt").read_text()
    assert [fact["threads"] for fact in facts] == [max(1, int(alone) // 2)] * 2
    assert (tmp_path / "error.txt").read_text() == "message of rank 1"
    # On the CPU, processes see no GPU, and the one that started them sees what it saw before.
    assert [fact["gpus"] for fact in facts] == ["", ""]
    assert (tmp_path / "gpus.txt").read_text() == os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def test_machines_find_each_other(tmp_path):
    options = ("--num-machines", "2", "--dist-url", f"file://{tmp_path}/meeting")
    finish(*(start(SCRIPT, tmp_path, *options, "--machine-rank", rank) for rank in range(2)))
    check_facts(tmp_path, local=[[0, 1], [0, 1]])


def options(**given):
    return argparse.Namespace(**{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", **given})


def test_one_process_is_this_one():
    assert launch(lambda args: (args.num_gpus, os.getpid()), options()) == (1, os.getpid())


@pytest.mark.parametrize("given", [{"num_gpus": 0}, {"num_machines": 2, "machine_rank": 2}, {"num_machines": 2}])
def test_contradictory_options_are_refused(given):
    with pytest.raises(LaunchError, match="--"):
        launch(print, options(**given))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LaunchError, match="2 processes need a GPU each, but this machine has 1"):
        launch(print, options(num_gpus=2), device="cuda")


def test_the_device_falls_back_unless_it_was_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available_device("cuda", explicit=False) == "cpu"
    assert available_device("cpu", explicit=True) == "cpu"
    with pytest.raises(DeviceError, match=r"MODEL\.DEVICE is cuda:0"):
        available_device("cuda:0", explicit=True)
