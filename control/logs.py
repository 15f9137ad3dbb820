"""The control process's log: the standard library's loggers, written as the data plane writes its own lines.

Everything passes one handler: our messages, those of asyncio and of libraries, warnings, and exceptions that nobody caught.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from types import TracebackType

from nyx.logline import JOURNAL, LEVELS, Record, Style, journal_entry, line


class Handler(logging.Handler):
    """Writes records to stderr, or to the journal."""

    def __init__(self, style: Style, process: str) -> None:
        super().__init__(LEVELS[style.level])
        self._style = style
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a log that cannot be written stops nothing."""
        level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "debug")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        found = self._style.clean(Record(level, self._process, self._text(record), stamp, record.name))
        if self._style.format == "journald" and _to_journal(journal_entry(found)):
            return
        with contextlib.suppress(OSError):
            os.write(2, line(self._style.format, found))

    @staticmethod
    def _text(record: logging.LogRecord) -> str:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a library's mistake in its arguments
            text = str(record.msg)
        if record.exc_info and record.exc_info[0]:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        return text


def configure(style: Style, process: str = "control") -> None:
    """Write in this way from now on."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(Handler(style, process))
    root.setLevel(LEVELS[style.level])
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("nyxd.control").error("this process ends by a bug", exc_info=(kind, error, trace))


def _to_journal(entry: bytes) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(entry, JOURNAL)
    except OSError:
        return False
    return True
