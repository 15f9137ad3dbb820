"""What the supervisor, keepers and workers write to the log: one small function, no logging framework in the data plane.

Place: start, end and failures of processes; nothing is said per packet, stream or peer.
"""

import contextlib
import os
import socket
import sys
import time
import traceback

from nyx.logline import JOURNAL, Record, Style, journal_entry, line


class _Voice:
    """Who speaks, and how: inherited by every process that is forked."""

    style = Style()
    process = "nyxd"


def configure(style: Style) -> None:
    """From now on write in this way, here and in what is forked."""
    _Voice.style = style


def speak_as(process: str) -> None:
    """Name this process in its lines."""
    _Voice.process = process


def say(level: str, message: str) -> None:
    """Write one record; never raises, and never waits for the journal."""
    style = _Voice.style
    if not style.wants(level):
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    record = style.clean(Record(level, _Voice.process, message, stamp))
    if style.format == "journald" and _to_journal(journal_entry(record)):
        return
    with contextlib.suppress(OSError):
        os.write(2, line(style.format, record))


def fail(message: str) -> None:
    """Say why the command ends: to the person who started it plainly, unless another form of log was asked for."""
    if _Voice.style.format == "text":
        sys.stderr.write(f"nyxd: {message}\n")
    else:
        say("error", message)


def say_exception(message: str) -> None:
    """Write the exception being handled, with its traceback."""
    say("error", f"{message}\n{traceback.format_exc()}")


def _to_journal(entry: bytes) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(entry, JOURNAL)
    except OSError:
        return False
    return True
