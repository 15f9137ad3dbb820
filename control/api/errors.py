"""Every way in which a call can fail: its code, the gRPC status it comes with, and what to do about it.

The codes of the admin socket (control/wire.py) keep their names here. docs/api.md holds this table, made from it.
"""

from typing import Any, Final, NamedTuple

import grpc

from control.api.generated.nyx_v1_pb2 import Error
from control.wire import Refusal
from nyx.errors import ConfigError
from nyx.sdk import NotReadyError, RefusedError, ResetError, SdkError, TimedOutError, UnreachableError

DETAILS_MAX: Final = 2048  # bytes of a status' text, and of its problems together: metadata has narrow bounds


class Kind(NamedTuple):
    """What belongs to a code."""

    status: grpc.StatusCode
    advice: str


_S = grpc.StatusCode
KINDS: Final[dict[str, Kind]] = {
    "bad_request": Kind(_S.INVALID_ARGUMENT, "send what docs/api.md says of this method"),
    "config": Kind(_S.FAILED_PRECONDITION, "mend what the problems name; nothing was changed"),
    "overridden": Kind(_S.FAILED_PRECONDITION, "change it in the environment or the flags of nyxd"),
    "version_changed": Kind(_S.ABORTED, "read the configuration again, then decide again"),
    "no_change": Kind(_S.FAILED_PRECONDITION, "there is nothing to do"),
    "not_written": Kind(_S.PERMISSION_DENIED, "let the node's user write its configuration files, or use nyxctl as their owner"),
    "not_found": Kind(_S.NOT_FOUND, "list again: it may have ended"),
    "refused": Kind(_S.FAILED_PRECONDITION, "do what the message says"),
    "failure": Kind(_S.ABORTED, "do what the message says; nothing was changed"),
    "timeout": Kind(_S.UNAVAILABLE, "ask GetInfo which process does not answer, and try again"),
    "busy": Kind(_S.RESOURCE_EXHAUSTED, "end streams, or wait"),
    "unknown_operation": Kind(_S.FAILED_PRECONDITION, "start the node with nyxd"),
    "unauthenticated": Kind(_S.UNAUTHENTICATED, "send the metadata authorization: Bearer TOKEN, as in api.token_file"),
    "sdk_off": Kind(_S.FAILED_PRECONDITION, "set sdk.enabled = true and start the node again"),
    "not_ready": Kind(_S.UNAVAILABLE, "wait until GetInfo says ready"),
    "stream_refused": Kind(_S.FAILED_PRECONDITION, "look at the reason: the target, or the exits' policies, say no"),
    "stream_timeout": Kind(_S.DEADLINE_EXCEEDED, "try again, or give it more time"),
    "stream_reset": Kind(_S.ABORTED, "open another stream; what was sent last may not have arrived"),
    "stream_lost": Kind(_S.UNAVAILABLE, "open another stream: the node was stopped or started again"),
    "internal": Kind(_S.INTERNAL, "read the node's log"),
}


class Answer(NamedTuple):
    """How a call fails: for context.abort."""

    status: grpc.StatusCode
    text: str
    trailing: tuple[tuple[str, str | bytes], ...]


def code_of(error: Exception) -> str:
    """The code of an error; `internal` for what nobody raised on purpose."""
    match error:
        case Refusal():
            return error.code if error.code in KINDS else "refused"
        case ConfigError():
            return "config"
        case NotReadyError() | UnreachableError():
            return "not_ready"
        case RefusedError():
            return "stream_refused"
        case TimedOutError() | TimeoutError():
            return "stream_timeout"
        case ResetError():
            return "stream_reset"
        case SdkError():
            return "stream_lost"
        case _:
            return "internal"


def answer(error: Exception) -> Answer:
    """What the caller gets."""
    code = code_of(error)
    kind = KINDS[code]
    text = "this call met a bug; the node's log has it" if code == "internal" else _cut(str(error)) or code
    return Answer(kind.status, text, trailing(code, text.splitlines()))


def trailing(code: str, problems: Any = ()) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a code."""
    advice = KINDS[code].advice
    told = Error(code=code, advice=advice, problems=problems).SerializeToString()
    return ("nyx-error-code", code), ("nyx-advice", advice), ("nyx-error-bin", told)


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    return text if len(data) <= DETAILS_MAX else data[: DETAILS_MAX - 4].decode("utf-8", "ignore") + " ..."
