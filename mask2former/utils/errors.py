"""Errors that the user can fix, and how a command line reports them."""

import sys
from collections.abc import Generator
from contextlib import contextmanager


class UserError(ValueError):
    """Base class of errors caused by a user's files, settings or options.

    The message names the file, key or value and says what was expected. Command lines print it without a traceback.
    """


@contextmanager
def report_errors(expected: tuple[type[Exception], ...], *, debug: bool = False) -> Generator[None, None, None]:
    """Turn errors that a user can mend into a message on stderr and exit code 1; any other error keeps its traceback.

    Args:
        expected: the types of such errors.
        debug: raise them like any other.
    """
    try:
        yield
    except expected as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


@contextmanager
def report_interrupt(message: str) -> Generator[None, None, None]:
    """Turn an interruption (Ctrl-C) into a message on stderr and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: {message}\n")
        sys.exit(130)
