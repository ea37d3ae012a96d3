import os
import signal
import subprocess
import sys
import time

import pytest

from mask2former.utils.parallel import default_workers, processes

SLEEPING = """
import os, time
from mask2former.utils.parallel import processes

def work(i):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)

with processes(2) as run:
    list(run(work, range(16)))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_order_is_kept(workers):
    with processes(workers) as run:
        assert list(run(divmod, range(40), [7] * 40)) == [divmod(i, 7) for i in range(40)]


def test_processes_share_the_work():
    with processes(2) as run:
        assert os.getpid() not in set(run(_pid, range(20)))
    assert 1 <= default_workers() <= 16


def _pid(_):
    return os.getpid()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SLEEPING], stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_runs(worker) for worker in workers):
        time.sleep(0.05)
    assert not any(_runs(worker) for worker in workers)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            # An orphan whose exit status is never collected remains as a zombie.
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
