"""The last step before a log line is written: nothing that names anybody in it, and one record is one record."""

import json
import struct
from typing import Final

from nyx.logline import MESSAGE_MAX, Record, Style, journal_entry, line
from nyx.scrub import scrub as clean
from tests.fuzz.script import Script

_SECRETS: Final = ("203.0.113.77", "2001:db8::7:1", "peer.example.org", "deadbeef" * 8)


def scrub(data: bytes) -> bool:
    """Secrets between any texts are taken out, and cleaning twice is cleaning once."""
    script = Script(data)
    secret = _SECRETS[script.number() % len(_SECRETS)]
    text = script.rest()[:MESSAGE_MAX].decode("utf-8", "replace")
    found = clean(text)
    assert len(found) <= 4 * len(text) + 16
    middle = len(text) // 2
    hidden = clean(f"{text[:middle]} {secret} {text[middle:]}")
    assert secret not in hidden or secret in text
    return found != text


def logline(data: bytes) -> bool:
    """No message forges a line in any format."""
    script = Script(data)
    choice = script.number()
    message = script.rest().decode("utf-8", "surrogateescape")
    record = Style(scrub=bool(choice & 1)).clean(Record("error", "worker 0", message, "2026-01-31T12:00:00.000Z", ""))
    assert len(record.message) <= 4 * MESSAGE_MAX
    first, *others = line("text", record).decode().splitlines()
    assert first.startswith("2026-01-31T12:00:00.000Z error worker 0: ")
    assert all(other.startswith("    ") for other in others)
    told = line("json", record)
    assert told.count(b"\n") == 1
    assert len(told.decode().splitlines()) == 1
    assert json.loads(told)["message"] == record.message
    assert all(part.startswith("<3>worker 0: ") for part in line("journald", record).decode().splitlines())
    assert _journal(journal_entry(record))["PRIORITY"] == b"3"
    return bool(message)


def _journal(entry: bytes) -> dict[str, bytes]:
    """The fields of a datagram, each once."""
    found: dict[str, bytes] = {}
    while entry:
        head, _, rest = entry.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        assert name.decode() not in found
        found[name.decode()] = value
        entry = rest
    return found
