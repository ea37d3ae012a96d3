"""Errors that the user can fix, and how a command line reports them."""

import sys
from collections.abc import Generator
from contextlib import contextmanager


class UserError(ValueError):
    """Base class of errors caused by a user's files, settings or options.

    The message names the file, key or value and says what was expected. Command lines print it without a traceback.

    Attributes:
        caused_by_user: Mark of such errors, also on those of packages that do not import this one.
    """

    caused_by_user = True


class ConfigError(UserError):
    """A config file, key or value that can't be used."""


@contextmanager
def report_errors(*, debug: bool = False, status: int = 1) -> Generator[None, None, None]:
    """Print errors caused by the user, and `OSError`, as a message on stderr and exit; others keep their traceback.

    Args:
        debug: Whether all errors keep their traceback.
        status: Exit code of the process.
    """
    try:
        yield
    except Exception as error:
        if debug or not (isinstance(error, OSError) or getattr(error, "caused_by_user", False)):
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(status)


@contextmanager
def report_interrupt(message: str) -> Generator[None, None, None]:
    """Turn an interruption (Ctrl-C) into a message on stderr and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: {message}\n")
        sys.exit(130)
