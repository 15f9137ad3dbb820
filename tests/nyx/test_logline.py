"""Lines of the log: what must never stand in one, what must stay readable, and that no message forges another line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.config import KEYS
from nyx.logline import MESSAGE_MAX, Record, Style, journal_entry, line
from nyx.scrub import scrub

HEX = "4fa1c09b7d2e4fa1c09b7d2e4fa1c09b7d2e4fa1c09b7d2e4fa1c09b7d2e4fa1"
CANARIES = [
    "93.184.216.34", "93.184.216.34:8080", "2001:db8::17", "[2001:db8::17]:443", "fe80::1%eth0", "::ffff:93.184.216.34",
    "canary.example", "canary.example:443", "a.b-c.canary.co.uk", "xn--e1afmkfd.xn--p1ai", "CANARY.Example.", "_sip.canary.net",
    HEX, HEX.upper(), "0x" + HEX[:16], ":".join(HEX[i : i + 2] for i in range(0, 32, 2)),
    repr(bytes.fromhex(HEX)), 'b"it\'s\\x00"',
    "bWFyeSBoYWQgYSBsaXR0bGUgbGFtYiBhbmQgMTIzNDU2Nzg5MA==",
]  # fmt: skip
FRAMES = ["{}", "cannot reach {}: refused", "({})", "'{}'", "url=http://{}/x", "user@{}", "a,{},b", "{}\n{}", "<{}>", "to {}."]


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("frame", FRAMES)
def test_canaries_do_not_come_through(canary, frame):
    found = scrub(frame.replace("{}", canary))
    for part in {canary, canary.strip("[]."), canary.split(":443")[0], "canary", HEX[:12], "93.184", "db8"}:
        if part in canary:
            assert part.lower() not in found.lower(), found


@pytest.mark.parametrize(
    "text",
    [
        "worker 0 ended by signal 9", "proxy 127.0.0.1 port 9750: Address already in use", "listening at [::1]:9751 and 0.0.0.0",
        "at 12:34:56, after 3.5 s; release 0.1.0", "no room: 1024 of 1024 connections",
        '  File "/opt/x/control/process.py", line 59, in main',
        "/etc/nyx/nyx.toml:12  ports: 99999 is above the range", "/run/nyx/control.sock", "rows[1:2], x = y",
        "READY alice udp=127.0.0.1:43300",
    ],
)  # fmt: skip
def test_what_names_nobody_stays(text):
    assert scrub(text) == text


def test_names_of_settings_stay():
    assert [key.name for key in KEYS if scrub(f"{key.name}: wrong") != f"{key.name}: wrong"] == []


RECORD = Record("warning", "worker 0", "two\nlines \x1b[31m\r\x00 of canary.example", "2026-01-31T12:00:00.000Z", "a.logger")


def test_text_is_one_record_a_line_with_its_continuation_indented():
    found = line("text", Style().clean(RECORD)).decode()
    assert found == "2026-01-31T12:00:00.000Z warning worker 0: two\n    lines \\x1b[31m\\r\\x00 of [name]\n"


def test_json_is_an_object_a_line():
    found = line("json", RECORD)
    assert found.count(b"\n") == 1
    assert json.loads(found) == {
        "time": RECORD.stamp, "level": "warning", "process": "worker 0", "message": RECORD.message, "logger": "a.logger"
    }  # fmt: skip


def test_the_journal_gets_fields_and_a_priority():
    entry = journal_entry(RECORD)
    value = RECORD.message.encode()
    assert entry.startswith(b"MESSAGE\n" + len(value).to_bytes(8, "little") + value + b"\nPRIORITY=4\n")
    assert entry.endswith(b"SYSLOG_IDENTIFIER=nyxd\nNYX_PROCESS=worker 0\nNYX_LOGGER=a.logger\n")
    assert line("journald", RECORD).decode().splitlines() == [
        "<4>worker 0: two",
        "<4>worker 0: lines \\x1b[31m\\r\\x00 of canary.example",
    ]


@given(st.text())
def test_no_message_forges_a_line(text):
    for form, heads in (("text", (RECORD.stamp, "    ")), ("json", ("{",)), ("journald", ("<4>",))):
        out = line(form, RECORD._replace(message=text)).decode()
        assert out.endswith("\n")
        parts = out[:-1].split("\n")
        assert parts[0].startswith(heads[0])
        assert all(part.startswith(heads[-1]) for part in parts[1:])
        assert not any(c in out for c in "\r\x1b\x00\x85\u2028")


def test_levels_and_sizes_are_bounded():
    style = Style(level="warning", scrub=False)
    assert [level for level in ("debug", "info", "warning", "error") if style.wants(level)] == ["warning", "error"]
    assert MESSAGE_MAX - 10 < len(style.clean(RECORD._replace(message="ab " * 10**6)).message) <= MESSAGE_MAX + 4
    assert style.clean(RECORD._replace(message="x" * 10**6)).message == " ..."
    at_the_cut = "x " * (MESSAGE_MAX // 2 - 2) + "canary.example"
    assert "can" not in Style().clean(RECORD._replace(message=at_the_cut)).message
    assert "canary.example" in style.clean(RECORD).message


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["a." * 50_000, "1:" * 50_000, "ab" * 50_000, "1." * 50_000, "b'" + "\\" * 50_000, "A1_" * 30_000]
)
def test_a_hostile_text_takes_no_long_time(text):
    scrub(text)
