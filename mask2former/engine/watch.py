"""Notice of a process that ends while others wait for it.

Without it, processes on other machines wait for NCCL's timeout, and gloo names an address instead of a process.
"""

import logging
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TypeAlias, cast

import torch.distributed as dist
from detectron2.utils import comm

from dinat_common.errors import UserError, message_of

_LOG = logging.getLogger(__name__)
_CONNECTING = 5.0  # seconds
# Seconds in which the reason of a failed communication becomes known.
_REASON = 5.0
# Seconds in which a process ends by itself after another one has ended; it may be waiting for it.
_GRACE = 15.0
# A machine that is gone is noticed after 10 + 4 * 5 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_UNEXPECTED = "ended unexpectedly: it was killed, or its machine is gone"
_DONE, _FAILED, _LOST, _WELCOME = b"done", b"failed ", b"lost ", b"welcome"


class ProcessLostError(UserError):
    """Another process of the run has ended. The message names it."""


# Hosts under which the first process may be reached, port, secret, and name for messages.
Address: TypeAlias = tuple[list[str], int, str, str]


@contextmanager
def watched(local_size: int) -> Generator[None, None, None]:
    """Run a block in all processes of a group such that none outlives another one that fails by more than seconds.

    A process that is killed, or whose machine is gone, closes its connection to the first process, which tells the
    others. Each of them then ends, at the latest after 15 seconds, with a message on stderr.

    Args:
        local_size: Number of processes per machine.

    Raises:
        ProcessLostError: Communication failed because another process had ended.
    """
    watch = _First(local_size) if comm.is_main_process() else _Other()
    watch.join(comm.all_gather(watch.address)[0])
    try:
        yield
    except BaseException as error:
        # A process that ends with its own error has none of the others to blame.
        reason = watch.reason() if isinstance(error, dist.DistError) or type(error) is RuntimeError else ""
        ended = isinstance(error, SystemExit) and not error.code
        watch.leave("" if reason or ended else f"{type(error).__name__}: {message_of(error)}".splitlines()[0])
        if reason:
            raise ProcessLostError(reason) from error
        raise
    watch.leave("")


class _Watch:
    """What both ends of the connections have.

    Attributes:
        address: Address of the first process, in that process.
    """

    address: Address | None = None

    def __init__(self) -> None:
        self._reason = ""
        self._noticed = threading.Event()
        self._left = threading.Event()

    def reason(self) -> str:
        """Why communication failed: which process has ended; empty if none has."""
        self._noticed.wait(_REASON)
        return self._reason

    def _notice(self, reason: str) -> None:
        """Remember the first process that ended, and end this one if it does not do so by itself."""
        if self._noticed.is_set() or self._left.is_set():
            return
        self._reason = reason
        self._noticed.set()
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        if not self._left.wait(_GRACE):
            sys.stderr.write(f"error: {self._reason}\n")
            sys.stderr.flush()
            # Not sys.exit(), which ends only this thread.
            os._exit(1)


class _First(_Watch):
    """The first process, to which the others connect."""

    def __init__(self, local_size: int) -> None:
        super().__init__()
        self._local_size = local_size
        one_machine = local_size == comm.get_world_size()
        self._server = socket.create_server(("127.0.0.1" if one_machine else "", 0), backlog=comm.get_world_size())
        hosts = [os.environ.get("MASTER_ADDR", ""), socket.gethostname()] if not one_machine else []
        hosts = [host for host in (*hosts, "127.0.0.1") if host]
        name = _name(0, local_size, socket.gethostname())
        self.address = (hosts, self._server.getsockname()[1], secrets.token_hex(), name)
        self._called = name
        self._clients: dict[socket.socket, str] = {}  # what the others are called
        self._lock = threading.Lock()

    def join(self, address: Address) -> None:
        """Serve the others in a thread."""
        threading.Thread(target=self._serve, args=(address[2],), daemon=True).start()

    def leave(self, failure: str) -> None:
        """Tell the others that this process ends, and why if it failed."""
        self._left.set()
        self._tell(_LOST + f"{self._called} failed: {failure}".encode() if failure else _DONE)

    def _serve(self, token: str) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._server:
                        client, _ = self._server.accept()
                        if self._is_welcome(client, token):
                            selector.register(client, selectors.EVENT_READ)
                        else:
                            client.close()
                    else:
                        self._hear(selector, cast(socket.socket, key.fileobj))

    def _is_welcome(self, client: socket.socket, token: str) -> bool:
        """Whether a new client is a process of this run, and not a stranger; greets it if so."""
        try:
            client.settimeout(_CONNECTING)
            given, rank, host = client.recv(4096).split()
            if not secrets.compare_digest(given, token.encode()):
                return False
            _keep_alive(client)
            client.sendall(_WELCOME + b"\n")
        except (OSError, ValueError):
            return False
        with self._lock:
            self._clients[client] = _name(int(rank), self._local_size, host.decode())
        return True

    def _hear(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        try:
            said = client.recv(4096).strip()
        except OSError:
            said = b""
        selector.unregister(client)
        with self._lock:
            name = self._clients.pop(client)
        client.close()
        if said == _DONE:
            return
        how = said.removeprefix(_FAILED).decode(errors="replace")
        reason = f"{name} failed: {how}" if said else f"{name} {_UNEXPECTED}"
        if not self._noticed.is_set():
            self._tell(_LOST + reason.encode())
        self._notice(reason)

    def _tell(self, line: bytes) -> None:
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.sendall(line + b"\n")


class _Other(_Watch):
    """Any other process."""

    def __init__(self) -> None:
        super().__init__()
        self._connection: socket.socket | None = None
        self._first = ""  # what the first process is called

    def join(self, address: Address) -> None:
        """Connect to the first process."""
        hosts, port, token, self._first = address
        for host in hosts:
            with suppress(OSError):
                connection = socket.create_connection((host, port), _CONNECTING)
                connection.sendall(f"{token} {comm.get_rank()} {socket.gethostname()}\n".encode())
                if connection.recv(len(_WELCOME) + 1).strip() == _WELCOME:
                    connection.settimeout(None)
                    _keep_alive(connection)
                    self._connection = connection
                    threading.Thread(target=self._listen, args=(connection,), daemon=True).start()
                    return
        _LOG.warning("Process 0 can't be reached at %s: if a process ends, others wait for the timeout", hosts)

    def leave(self, failure: str) -> None:
        """Tell the first process that this one ends, and why if it failed."""
        self._left.set()
        if self._connection is not None:
            with suppress(OSError):
                self._connection.sendall(_FAILED + failure.encode() if failure else _DONE)

    def _listen(self, connection: socket.socket) -> None:
        try:
            said = connection.recv(4096).strip()
        except OSError:
            said = b""
        if said != _DONE:
            told = said.removeprefix(_LOST).decode(errors="replace")
            self._notice(told or f"{self._first} {_UNEXPECTED}")


def _name(rank: int, local_size: int, host: str) -> str:
    return f"process {rank} (machine {rank // local_size}, {host})"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
