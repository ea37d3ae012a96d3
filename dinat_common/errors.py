"""Errors that the user can fix, and how a command line reports them."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn

# Exit codes that shells give to processes ended by SIGINT and SIGPIPE.
_INTERRUPTED, _NO_READER = 130, 141


class UserError(ValueError):
    """Base class of errors caused by a user's files, settings or options.

    The message names the file, key or value and says what was expected. Command lines print it without a traceback.

    Attributes:
        caused_by_user: Mark of such errors, also on those of extensions that do not import this package.
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


class MissingPackageError(UserError, ImportError):
    """An optional package is missing or too old."""

    def __init__(self, module: str, extra: str, error: ImportError):
        """Make the message.

        Args:
            module: Module or work that needs the package.
            extra: Name of the extra in pyproject.toml that installs it.
            error: Failed import.
        """
        super().__init__(f"{module} needs another package: pip install -e '.[{extra}]' ({error})")


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

    If the reader of stdout has ended (`| head`), the process exits with code 141 and without a message.

    Args:
        debug: Whether all errors keep their traceback.
        status: Exit code of the process.
    """
    try:
        yield
    except Exception as error:
        unnamed = isinstance(error, OSError) and error.filename is None and bool(error.errno)
        # What is lost may not be in the buffer any more: an empty line shows whether stdout is the cause.
        lost = _lost_output("\n" if unnamed else "")
        if isinstance(error, BrokenPipeError) or isinstance(lost, BrokenPipeError):
            sys.exit(_NO_READER)
        if debug or not is_expected(error):
            raise
        message = f"standard output: can't be written: {lost.strerror}" if lost and unnamed else message_of(error)
        sys.stderr.write(f"error: {message}\n")
        sys.exit(status)


def is_expected(error: BaseException | None) -> bool:
    """Whether an error is reported without a traceback: one that the user or the system has caused."""
    return isinstance(error, OSError) or getattr(error, "caused_by_user", False)


def message_of(error: BaseException) -> str:
    """The message of an error; without the number that Python adds to errors of the system."""
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


def _lost_output(text: str) -> OSError | None:
    """The error of writing `text` and what stdout still holds, which is then discarded: Python would complain of it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


@contextmanager
def report_interrupt(message: str) -> Generator[None, None, None]:
    """Turn an interruption (Ctrl-C) into a message on stderr and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: {message}\n")
        sys.exit(_INTERRUPTED)


def run_script(main: Callable[[], Any]) -> NoReturn:
    """Run the command line of a script, and exit with the code that `main` returns.

    Interruptions (Ctrl-C) end the process with code 130, output without a reader with 141, and output that can't be
    written, as on a full disk, with 1; all without a traceback.
    """
    status: object = 0
    with report_interrupt("unfinished files were removed"), report_errors():
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        # At its end, Python would report a failure with a traceback.
        sys.stdout.flush()
    sys.exit(status)  # type: ignore[arg-type]
