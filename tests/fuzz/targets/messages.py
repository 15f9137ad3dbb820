"""Messages between processes: workers, supervisor, control process, nyxctl and applications."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

from control import wire
from nyx.errors import RemoteProtocolError
from nyx.wire import admin
from nyx.wire import orders as supervisor
from nyx.wire import sdk as sdk_words
from nyx.wire.envelope import MESSAGE_MAX


def _same_again(found: Any, decode: Callable[[bytes], Any]) -> None:
    """What was read reads the same when it is written again; escapes may make it too long, or nesting too deep."""
    with contextlib.suppress(RecursionError):
        again = found.encode()
        if len(again) <= MESSAGE_MAX:
            assert decode(again) == found


def admin_request(data: bytes) -> bool:
    """What a worker is asked."""
    try:
        found = admin.decode_request(data)
    except RemoteProtocolError:
        return False
    _same_again(found, admin.decode_request)
    return True


def admin_answer(data: bytes) -> bool:
    """What it answers, and the page of rows that carries it."""
    try:
        found = admin.decode_answer(data)
    except RemoteProtocolError:
        return False
    _same_again(found, admin.decode_answer)
    return True


def orders(data: bytes) -> bool:
    """Orders to the supervisor and its notices."""
    taken = False
    for kind in (supervisor.Order, supervisor.Notice):
        with contextlib.suppress(RemoteProtocolError):
            found = supervisor.decode(data, kind)
            _same_again(found, lambda again, kind=kind: supervisor.decode(again, kind))  # type: ignore[misc]
            taken = True
    return taken


def sdk(data: bytes) -> bool:
    """Every message of an application's socket, and the words in its memory."""
    word = int.from_bytes(data[:8], "little")
    verb = sdk_words.read_verb(word)
    assert verb is None or sdk_words.verb_word(*verb) == word
    sdk_words.read_state(word)
    taken = False
    for decode in (sdk_words.decode_hello, sdk_words.decode_answer, sdk_words.decode_note):
        with contextlib.suppress(RemoteProtocolError):
            found = decode(data)
            _same_again(found, decode)
            taken = True
    return taken


def control_wire(data: bytes) -> bool:
    """Lines of the admin socket, both ways; whatever a request says can be answered."""
    taken = False
    try:
        op, args = wire.parse_request(data)
        with contextlib.suppress(RecursionError, ValueError):
            assert wire.parse_request(wire.request(op, args)) == (op, args)
        refusal = wire.refusal(wire.Refusal("unknown_operation", f"no operation {op}"))
        assert refusal.count(b"\n") == 1
        taken = True
    except wire.Refusal as error:
        assert json.loads(wire.refusal(error))["code"] == "bad_request"
    with contextlib.suppress(wire.Refusal):
        wire.parse_answer(data)
        taken = True
    return taken
