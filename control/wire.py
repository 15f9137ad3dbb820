"""The admin socket's protocol: one JSON object a line, each way, over a unix stream socket; shared by server and nyxctl.

    request   {"v": 1, "op": "streams", "args": {"show_targets": true}}
    answer    {"v": 1, "ok": true, "document": {"schema": "nyx.streams", "version": 1, ...}}
    refusal   {"v": 1, "ok": false, "code": "denied", "error": "..."}

A connection may carry several requests, answered in order. Operations: status, stats, circuits, streams (show_targets), peers,
close_circuit (worker, circuit), close_stream (worker, circuit, stream), reload (origin), config, config_diff, config_history,
config_kept (version), restart (worker), upgrade (drain), events (after, life, wait). Refusal codes:
denied, busy, bad_request, unknown_operation, not_found, timeout, config (wrong files: nothing was changed), failure, internal.
"""

import json
from typing import Any, Final

VERSION: Final = 1
LINE_MAX: Final = 16384  # bytes of a request
DOCUMENT_MAX: Final = 64 << 20  # bytes of an answer that nyxctl takes


class Refusal(Exception):  # noqa: N818  an answer of the protocol, not a fault
    """A request that is not answered with a document."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def dump(value: Any) -> bytes:
    """One line. Half of a surrogate pair, which a request or a file's name may hold, stays JSON's escape."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def request(op: str, args: dict[str, Any] | None = None) -> bytes:
    """The line that asks."""
    return dump({"v": VERSION, "op": op, "args": args or {}})


def answer(document: dict[str, Any]) -> bytes:
    """The line that answers."""
    return dump({"v": VERSION, "ok": True, "document": document})


def refusal(error: Refusal) -> bytes:
    """The line that refuses."""
    return dump({"v": VERSION, "ok": False, "code": error.code, "error": str(error)})


def parse_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Operation and arguments of a line. Raises Refusal."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refusal("bad_request", "a request is one JSON object on one line") from error
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise Refusal("bad_request", f"a request is an object with v = {VERSION}")
    op, args = value.get("op"), value.get("args", {})
    if not isinstance(op, str) or not isinstance(args, dict):
        raise Refusal("bad_request", "op must be a text and args an object")
    return op, args


def parse_answer(line: bytes) -> dict[str, Any]:
    """The document of a line. Raises Refusal: the peer's, or one of code "protocol" when the line is none of ours."""
    try:
        value = json.loads(line)
        if value["v"] != VERSION:
            raise Refusal("protocol", f"the node speaks version {value['v']} of the admin protocol, this nyxctl {VERSION}")
        if value["ok"]:
            document = value["document"]
            if isinstance(document, dict):
                return document
        else:
            raise Refusal(str(value["code"]), str(value["error"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refusal("protocol", "the node's answer is not of the admin protocol") from error
    raise Refusal("protocol", "the node's answer holds no document")
