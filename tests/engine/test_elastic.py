"""Two machines under torchrun, each with its own data: one is killed, and the training ends as if it had not been."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from ..conftest import ROOT, load_script
from .test_killed import lines, require_equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Folders of data, one per machine, with equal contents."""
    folders = [tmp_path_factory.mktemp(f"machine{rank}") for rank in range(2)]
    for folder in folders:
        load_script("datasets/prepare_shapes.py").prepare(folder, train=5, val=2, size=64)
    return folders


def run(machines, output, *words):
    """Train on both machines, which share only the folder of the output; returns what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-W", "ignore", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    torchrun += ["--rdzv-conf", "timeout=300,is_host={host}", "--local-addr", "127.0.0.1"]
    agents = []
    for rank, data in enumerate(machines):
        command = [word.format(host=int(rank == 0)) for word in torchrun]
        command += ["-m", "tests.engine.elastic", str(output), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["DETECTRON2_DATASETS"] = str(data)
        # Otherwise PyTorch 2.14 keeps the addresses of the first attempt, and the second one waits for them.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        agents.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE
            )
        )
    printed = [agent.communicate(timeout=600)[0].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    return printed


def test_a_killed_machine_is_named_and_the_restarted_training_ends_as_undisturbed(machines, tmp_path):
    run(machines, tmp_path / "whole")
    printed = run(machines, tmp_path / "killed", "kill")
    assert any("Signal 9 (SIGKILL)" in text or "exitcode: -9" in text for text in printed), "\n".join(printed)
    contents = [torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "killed")]
    require_equal(*contents)
    assert lines(tmp_path / "whole" / "metrics.json") == lines(tmp_path / "killed" / "metrics.json")
    metrics = [tmp_path / name / "inference" / "metrics.json" for name in ("whole", "killed")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
