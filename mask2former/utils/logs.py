"""Logs on the console and in a file, in Detectron2's format. A log that can't be written is an error."""

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from detectron2.utils.logger import setup_logger

from dinat_common.errors import is_expected, message_of
from dinat_common.files import AppendedFile, WriteError

_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


class _Handler(logging.Handler):
    """Base class of handlers that raise errors of writing; Python's own print them with a traceback and go on."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record; errors that are reported without a traceback are logged without one."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and is_expected(error):
            message = f"{record.getMessage()} {message_of(error)}"
            without = {"msg": message, "args": (), "exc_info": None, "exc_text": None}
            record = logging.makeLogRecord({**vars(record), **without})
        try:
            return super().handle(record)
        except OSError:
            # The error that the record is about matters more.
            if error is None:
                raise
            return False

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise errors of the system; others are mistakes in the call, which Python prints."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


class ConsoleHandler(_Handler, logging.StreamHandler):
    """Handler of stdout."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise errors of the system, which do not name stdout."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise WriteError(error.errno, error.strerror, "standard output") from error
        super().handleError(record)


class LogFileHandler(_Handler):
    """Handler of a file that grows by whole lines."""

    def __init__(self, path: str | Path):
        """Open the file for further lines.

        Raises:
            WriteError: It can't be opened.
        """
        super().__init__()
        self._file = AppendedFile(path)
        self.setFormatter(logging.Formatter(_FORMAT, datefmt="%m/%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record.

        Raises:
            WriteError: The file can't be written.
        """
        try:
            self._file.add(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except (OSError, TypeError, ValueError):
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def set_up_logs(names: Iterable[str], folder: str | Path | None = None, rank: int = 0) -> None:
    """Log on the console, if this is the main process, and to a file.

    Args:
        names: Names of the loggers.
        folder: Folder of log.txt (log.txt.rankN in other processes), which replaces the one of an earlier call. By
            default there is no file.
        rank: Number of the process.

    Raises:
        WriteError: The file can't be written.
    """
    file = None
    if folder is not None:
        file = LogFileHandler(os.path.join(folder, f"log.txt.rank{rank}" if rank else "log.txt"))
    for name in names:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, ConsoleHandler) or (file is not None and isinstance(handler, LogFileHandler)):
                logger.removeHandler(handler)
                handler.close()
        # Without its cache, which takes a logger that has changed since for one that is set up.
        setup_logger.__wrapped__(distributed_rank=rank, name=name)
        for handler in logger.handlers[:]:
            if type(handler) is logging.StreamHandler:
                console = ConsoleHandler(handler.stream)
                console.setFormatter(handler.formatter)
                logger.removeHandler(handler)
                logger.addHandler(console)
        if file is not None:
            logger.addHandler(file)
