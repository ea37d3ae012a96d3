"""A process that is killed or fails ends the others, which name it."""

import os
import signal
import socket
import time

import pytest
from detectron2.utils import comm

from mask2former.engine import watch
from mask2former.engine.watch import ProcessLostError, watched
from tests.processes import finish, start, together


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("local_size", [3, 1])
def test_processes_that_wait_name_the_killed_one(victim, local_size, tmp_path):
    def act(rank):
        try:
            with watched(local_size):
                comm.synchronize()
                if rank == victim:
                    os.kill(os.getpid(), signal.SIGKILL)
                comm.synchronize()
        except ProcessLostError as error:
            (tmp_path / f"error{rank}").write_text(str(error))
            os._exit(3)

    begin = time.monotonic()
    processes, _ = start(tmp_path, act, 3, local_size)
    assert finish(processes) == [-signal.SIGKILL if rank == victim else 3 for rank in range(3)]
    assert time.monotonic() - begin < 30
    machine = victim if local_size == 1 else 0
    expected = f"process {victim} (machine {machine}, {socket.gethostname()}) ended unexpectedly: it was killed, or"
    for rank in {0, 1, 2} - {victim}:
        assert (tmp_path / f"error{rank}").read_text().startswith(expected)


def test_processes_that_are_busy_end_too(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(watch, "_GRACE", 0.1)

    def act(rank):
        with watched(1):
            comm.synchronize()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    processes, _ = start(tmp_path, act, 3, 1)
    assert finish(processes) == [1, -signal.SIGKILL, 1]
    assert capfd.readouterr().err.count("error: process 1 (machine 1, ") == 2


def test_an_error_of_one_process_is_told_to_the_others_and_stays_its_own(tmp_path):
    def act(rank):
        with pytest.raises(ProcessLostError if rank == 0 else ValueError) as caught, watched(1):
            if rank == 1:
                raise ValueError("out of luck\nand more")
            comm.synchronize()
            if rank == 0:
                time.sleep(1)
                raise RuntimeError("Connection closed by peer")
        return str(caught.value)

    processes, reports = start(tmp_path, act, 2, 1)
    finish(processes)
    found = dict(reports.get() for _ in range(2))
    assert found[0].endswith(") failed: ValueError: out of luck") and found[0].startswith("process 1 (machine 1, ")
    assert found[1] == "out of luck\nand more"


def test_errors_of_the_work_itself_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_REASON", 0.1)

    def act(rank):
        if rank == 0:
            with watched(2):
                time.sleep(0.5)
        else:
            with pytest.raises(RuntimeError, match="sizes differ"), watched(2):
                raise RuntimeError("sizes differ")

    assert together(tmp_path, act, 2, 2) == [None, None]


def test_strangers_at_the_port_are_sent_away(monkeypatch):
    first = watch._First(1)
    first.join(first.address)
    hosts, port, token, _ = first.address
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"guess 1 host\n", b"\xff\n"):
        with socket.create_connection((hosts[0], port), 10) as stranger:
            stranger.sendall(words)
            assert stranger.recv(10) == b""
    with socket.create_connection((hosts[0], port), 10) as member:
        member.sendall(f"{token} 1 host\n".encode())
        assert member.recv(10) == b"welcome\n"
        member.sendall(b"done")
        assert member.recv(10) == b""
    assert not first._noticed.is_set()
