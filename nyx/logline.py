"""What a line of the log looks like: text, JSON, or an entry for the journal. The writers are in shards and control.

    text      2026-01-31T12:00:00.000Z error worker 0: message     further lines of a message are indented
    json      {"time": ..., "level": ..., "process": ..., "message": ...}, one object a line
    journald  the journal's own fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, NYX_PROCESS, NYX_LOGGER

A message cannot forge a line: control characters are escaped, line ends are indented, quoted or counted.
Source: systemd's "Native Journal Protocol"; sd-daemon(3) for the priorities.
"""

import json
import re
from typing import Final, NamedTuple

from nyx.scrub import scrub

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}  # as the standard library numbers them
FORMATS: Final = ("text", "json", "journald")
JOURNAL: Final = "/run/systemd/journal/socket"
MESSAGE_MAX: Final = 16384  # characters; more is cut
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Record(NamedTuple):
    """One event: `stamp` is a time in UTC, `process` who says it, `logger` which part of it."""

    level: str
    process: str
    message: str
    stamp: str
    logger: str = ""


class Style(NamedTuple):
    """How the log is written, and how much of it: the settings under [log]."""

    format: str = "text"
    level: str = "info"
    scrub: bool = True

    def wants(self, level: str) -> bool:
        """Whether a record of this level is written."""
        return LEVELS[level] >= LEVELS[self.level]

    def clean(self, record: Record) -> Record:
        """The record without what it must not tell, and of bounded size."""
        message = record.message
        if len(message) > MESSAGE_MAX:  # at a space: half of a name is not known as one
            message = message[:MESSAGE_MAX].rpartition(" ")[0] + " ..."
        return record._replace(message=scrub(message) if self.scrub else message)


def line(form: str, record: Record) -> bytes:
    """The record for stderr; for the journal, with its priority as sd-daemon writes it."""
    if form == "json":
        fields = {"time": record.stamp, "level": record.level, "process": record.process, "message": record.message}
        return json.dumps(fields | ({"logger": record.logger} if record.logger else {})).encode() + b"\n"
    text = _CONTROL.sub(lambda m: ascii(m[0])[1:-1], record.message).rstrip("\n")
    if form == "journald":
        mark = f"<{_PRIORITY[record.level]}>"
        return "".join(f"{mark}{record.process}: {part}\n" for part in text.split("\n")).encode("utf-8", "replace")
    indented = text.replace("\n", "\n    ")
    return f"{record.stamp} {record.level} {record.process}: {indented}\n".encode("utf-8", "replace")


def journal_entry(record: Record) -> bytes:
    """The record as one datagram for the journal's socket."""
    fields = {
        "MESSAGE": record.message, "PRIORITY": str(_PRIORITY[record.level]), "SYSLOG_IDENTIFIER": "nyxd",
        "NYX_PROCESS": record.process, "NYX_LOGGER": record.logger,
    }  # fmt: skip
    return b"".join(_field(name, value.encode("utf-8", "replace")) for name, value in fields.items() if value)


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
