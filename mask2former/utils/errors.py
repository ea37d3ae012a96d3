"""Errors that the user can fix, and how a command line reports them."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """Base class of errors caused by a user's files, settings or options.

    The message names the file, key or value and says what was expected. Command lines print it without a traceback.

    Attributes:
        caused_by_user: Mark of such errors, also on those of packages that do not import this one.
    """

    caused_by_user = True

    def __init__(self, *arguments: object):
        """Take the message. Of the text that PyTorch makes of an error in a worker process, the message is kept."""
        if arguments and isinstance(arguments[0], str):
            arguments = (_message_of_worker(arguments[0], type(self)), *arguments[1:])
        super().__init__(*arguments)


def _message_of_worker(text: str, kind: type) -> str:
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return text
    return text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()


class ConfigError(UserError):
    """A config file, key or value that can't be used."""


def checked_fraction(value: Any, name: str) -> float:
    """Check a number from 0 to 1 of any numeric type.

    Args:
        value: Number.
        name: Name of the setting, for the message.

    Returns:
        The number as a float.

    Raises:
        ConfigError: The value is no number, or not from 0 to 1.
    """
    try:
        fraction = -1.0 if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        fraction = -1.0
    # NaN is not between them.
    if not 0 <= fraction <= 1:
        raise ConfigError(f"{name} {value!r}: expected a number from 0 to 1")
    return fraction


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
