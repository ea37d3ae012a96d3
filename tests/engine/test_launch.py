import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from mask2former.engine import DeviceError, LaunchError, ProcessLostError, available_device, default_processes, launch
from mask2former.engine.run import warn_of_emulated_bfloat16

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = SCRIPT.parents[2]
# The package has a function of the same name.
LAUNCH = sys.modules["mask2former.engine.launch"]


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
    finish(start(SCRIPT, tmp_path, "--num-gpus", "2", "--do", "describe_and_fail_on_one"))
    facts = check_facts(tmp_path, local=[[0, 2], [1, 2]])
    alone = (tmp_path / "threads.txt").read_text()
    assert [fact["threads"] for fact in facts] == [max(1, int(alone) // 2)] * 2
    assert (tmp_path / "error0.txt").read_text() == "message of rank 1"
    # On the CPU, processes see no GPU, and the one that started them sees what it saw before.
    assert [fact["gpus"] for fact in facts] == ["", ""]
    assert (tmp_path / "gpus.txt").read_text() == os.environ.get("CUDA_VISIBLE_DEVICES", "all")


@pytest.mark.slow
def test_machines_find_each_other(tmp_path):
    options = ("--num-machines", "2", "--dist-url", f"file://{tmp_path}/meeting")
    finish(*(start(SCRIPT, tmp_path, *options, "--machine-rank", rank) for rank in range(2)))
    check_facts(tmp_path, local=[[0, 1], [0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "machines"])
def test_a_killed_process_is_named_by_those_that_waited_for_it(kind, tmp_path):
    do = ("--do", "describe_and_kill_one")
    if kind == "processes":
        finish(start(SCRIPT, tmp_path, "--num-gpus", "2", *do))
        assert (tmp_path / "error0.txt").read_text().startswith("process 1 (machine 0")
    else:
        meeting = ("--num-machines", "2", "--dist-url", f"file://{tmp_path}/meeting")
        finish(*(start(SCRIPT, tmp_path, *meeting, "--machine-rank", rank, *do) for rank in range(2)))
        assert "process 1 (machine 1, " in (tmp_path / "error0.txt").read_text()
        assert "process 1 (machine 1) ended with signal SIGKILL" in (tmp_path / "error1.txt").read_text()
    # The victim writes its facts just before it is killed.
    assert (tmp_path / "error0.txt").stat().st_mtime - (tmp_path / "1.json").stat().st_mtime < 60


def ended(monkeypatch, **how):
    """The error of a launch in which the second process on the third machine ends."""

    def end(*arguments, **options):
        raise torch.multiprocessing.ProcessExitedException("process 1 ended", error_index=1, error_pid=1, **how)

    monkeypatch.setattr(LAUNCH, "detectron2_launch", end)
    with pytest.raises(ProcessLostError) as caught:
        launch(print, options(num_gpus=4, num_machines=3, machine_rank=2, dist_url="tcp://a:1"))
    return str(caught.value)


def test_processes_that_end_without_an_error_are_named(monkeypatch):
    killed = ended(monkeypatch, exit_code=-9, signal_name="SIGKILL")
    assert killed == "process 9 (machine 2) ended with signal SIGKILL; SIGKILL usually means that memory ran out"
    assert ended(monkeypatch, exit_code=1) == "process 9 (machine 2) ended with exit status 1"


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        # torchrun
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5"}, {}, "joins with 4 here"),
        # Kubernetes' PyTorch operator, which starts one process per machine
        ({"WORLD_SIZE": "2", "RANK": "1"}, {}, "joins with 1 here"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, {"num_gpus": 8}, (8, 2, 1, "tcp://first:29500")),
        ({"WORLD_SIZE": "1", "RANK": "0"}, {"num_gpus": 8}, (8, 1, 0, "auto")),
    ],
)
def test_the_environment_describes_processes_or_machines(environment, given, expected, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MASTER_ADDR": "first", "MASTER_PORT": "29500", **environment}.items():
        monkeypatch.setenv(name, value)
    started = []
    monkeypatch.setattr(LAUNCH, "detectron2_launch", lambda main, *where, args: started.append(where))
    monkeypatch.setattr(LAUNCH, "_join_torchrun", lambda on_gpu, size: started.append(f"joins with {size} here"))
    monkeypatch.setattr(LAUNCH, "_run", lambda main, args, size: None)
    launch(print, options(**given))
    assert started == [expected]


def options(**given):
    return argparse.Namespace(**{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", **given})


def test_one_process_is_this_one():
    assert launch(lambda args: (args.num_gpus, os.getpid()), options()) == (1, os.getpid())
    # The user's number takes precedence over the default.
    assert launch(lambda _: os.getpid(), options(), processes=2) == os.getpid()
    assert launch(lambda _: os.getpid(), options(num_gpus=None)) == os.getpid()


@pytest.mark.parametrize(
    ("cores", "gigabytes", "batch", "expected"),
    [
        (1, 64, 8, 1),
        (2, 64, 8, 2),
        (8, 64, 8, 8),
        (8, 64, 6, 6),
        (4, 64, 6, 3),
        (8, 64, 7, 7),
        (8, 8, 8, 2),
        (8, 1, 8, 1),
    ],
)
def test_a_cpu_has_a_process_per_core_by_default(cores, gigabytes, batch, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(LAUNCH, "available_cores", lambda: cores)
    monkeypatch.setattr(LAUNCH, "available_memory", lambda: gigabytes << 30)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.IMS_PER_BATCH = batch
    assert default_processes(cfg, trains=True) == expected
    assert default_processes(cfg, trains=False) == max(1, min(cores, gigabytes // 3))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert default_processes(cfg, trains=True) == default_processes(cfg, trains=False) == 1


def test_one_process_by_default_on_a_gpu_and_where_their_number_scales_the_batch(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(LAUNCH, "available_cores", lambda: 4)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda"
    assert default_processes(cfg, trains=True) == 1
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    assert default_processes(cfg, trains=True) == 1


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


@pytest.mark.parametrize(
    ("capabilities", "device", "warned"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "cpu", True),
        ({"architecture": "x86_64", "avx512_bf16": True}, "cpu", False),
        ({"architecture": "x86_64", "avx512_bf16": False}, "cuda", False),
        ({"architecture": "aarch64"}, "cpu", False),
    ],
)
def test_bfloat16_without_instructions_is_warned_of(capabilities, device, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    warn_of_emulated_bfloat16(device)
    assert ("set SOLVER.AMP.ENABLED False" in caplog.text) == warned
