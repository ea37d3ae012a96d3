"""Where a page can be served."""

import socket

from mask2former.utils.errors import UserError

_FIRST_PORT, _PORTS = 7860, 100


class AddressError(UserError):
    """An address that can't be listened at; the message says why."""


def free_port(host: str, port: int | None) -> int:
    """A port of this machine that nobody listens at.

    Args:
        host: name or IPv4 address of this machine.
        port: None: the first free one from 7860 on.

    Raises:
        AddressError: the address is not of this machine, or the port is taken.
    """
    if port is not None and not 0 < port < 65536:
        raise AddressError(f"port {port}: expected a number from 1 to 65535")
    ports = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else [port]
    reason = None
    for number in ports:
        reason = _why_not(host, number)
        if reason is None:
            return number
    raise AddressError(f"can't listen at {host}, port {port or f'{ports[0]} to {ports[-1]}'}: {reason}")


def _why_not(host: str, port: int) -> str | None:
    """Why the port can't be used, or None if it can."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            # As web servers do, who may come back to a port at once.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
    except socket.gaierror as error:
        raise AddressError(f"{host}: expected a name or an IPv4 address of this machine ({error})") from error
    except OSError as error:
        return str(error)
    return None
