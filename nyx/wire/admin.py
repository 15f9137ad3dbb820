"""Messages between the control process and one worker: JSON over their SOCK_SEQPACKET channel, one message a packet.

Roles: the control process asks, the worker answers; a worker never speaks first. A worker that dies loses what it was asked:
the control process gives up after its own deadline, and the next worker on the same channel may find old requests in it and
answers them (ids are never reused, so a late answer is ignored).

    request   {"v": 1, "id": 7, "op": "circuits", "args": {}}
    answer    {"v": 1, "id": 7, "ok": true, "data": {...}, "more": false}
    refusal   {"v": 1, "id": 7, "ok": false, "error": "no circuit 12", "more": false}

Lists are cut into answers of at most MESSAGE_MAX bytes under the same id; all but the last have "more": true.

| op            | args                                  | data                          |
| ------------- | ------------------------------------- | ----------------------------- |
| ping          | none                                  | PingData                      |
| status        | none                                  | StatusData                    |
| circuits      | none                                  | {"circuits": [CircuitRow]}    |
| streams       | show_targets: bool (default false)    | {"streams": [StreamRow]}      |
| peers         | none                                  | {"peers": [PeerRow]}          |
| close_circuit | circuit: int, as numbered in circuits | {"closed": true}              |
| close_stream  | circuit, stream: int, as in streams   | {"closed": true}              |
| prepare       | version: int, staged in shared memory | {"version": int}: ready to run |

What a relay cannot know is null, what it must not tell is null too: hops are given for this node's own circuits only, a target
for this node's own client streams only and only where show_targets is true. Ages are seconds, times to peers milliseconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypedDict

from nyx.errors import RemoteProtocolError
from nyx.wire.envelope import MESSAGE_MAX, VERSION, dump, load

_ENVELOPE: Final = 256  # bytes kept free for the fields around a page of rows


class Op(StrEnum):
    """What a worker can be asked."""

    PING = "ping"
    STATUS = "status"
    CIRCUITS = "circuits"
    STREAMS = "streams"
    PEERS = "peers"
    CLOSE_CIRCUIT = "close_circuit"
    CLOSE_STREAM = "close_stream"
    PREPARE = "prepare"


class Stage(StrEnum):
    """How far a worker's start has come, in this order; a relay goes from STARTING to READY, a client through all."""

    STARTING = "starting"
    LINKS = "links"  # the first link handshake is under way
    CIRCUITS = "circuits"  # a link stands, the first circuit is being built
    READY = "ready"


class Role(StrEnum):
    """A node's part in one circuit."""

    CLIENT = "client"
    RELAY = "relay"
    LAST = "last"


class CircuitState(StrEnum):
    """Where a circuit is in its life."""

    BUILDING = "building"
    READY = "ready"
    CLOSING = "closing"


class StreamState(StrEnum):
    """Where a stream is in its life; a closed one is listed for a while, with its reason."""

    OPENING = "opening"
    OPEN = "open"
    HALF_CLOSED = "half-closed"
    CLOSED = "closed"


class PingData(TypedDict):
    """Answer to ping."""

    worker: int
    pid: int


class StatusData(TypedDict):
    """Answer to status."""

    worker: int
    pid: int
    stage: str  # Stage
    uptime: float
    links: int
    circuits: int
    circuits_ready: int  # own circuits that can take a stream now
    streams: int
    warnings: list[str]  # complete sentences for the operator
    config: int  # version of the configuration that runs here; 0: the one of the start


class HopRow(TypedDict):
    """One hop of an own circuit."""

    node: str  # node id, hex
    alias: str | None


class CircuitRow(TypedDict):
    """One circuit that this worker takes part in."""

    id: int  # local number, unique within the worker while the circuit lives
    worker: int
    role: str  # Role
    state: str  # CircuitState
    hops: list[HopRow] | None  # role client only
    age: float
    streams: int | None  # at the ends
    cells_in: int  # towards this node
    cells_out: int


class StreamRow(TypedDict):
    """One stream that begins or ends here."""

    id: int  # number on its circuit
    worker: int
    circuit: int | None
    role: str  # Role: client or last
    state: str  # StreamState
    target: str | None  # host:port
    age: float
    bytes_in: int  # from the far end
    bytes_out: int
    reason: str | None  # why it ended or failed, in words


class PeerRow(TypedDict):
    """One link."""

    node: str | None  # node id, hex; null: a client
    alias: str | None
    worker: int
    initiator: bool  # this node opened the link
    state: str  # "handshake", "up" or "closing"
    sessions: int
    suite: str | None
    rtt: float | None
    packets_in: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class Request:
    """A question to a worker."""

    id: int
    op: Op
    args: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The message."""
        return dump({"v": VERSION, "id": self.id, "op": self.op.value, "args": dict(self.args)})


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer: data, or the error in words."""

    id: int
    data: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    more: bool = False

    def encode(self) -> bytes:
        """The message."""
        head = {"v": VERSION, "id": self.id, "ok": self.error is None, "more": self.more}
        return dump({**head, "data": dict(self.data)} if self.error is None else {**head, "error": self.error})


def answer_rows(request: int, name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The messages that answer with a list, each at most MESSAGE_MAX bytes; an empty list is one message."""
    page: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        length = len(dump(row)) + 1
        if page and size + length > MESSAGE_MAX - _ENVELOPE:
            yield Answer(request, {name: page}, more=True).encode()
            page, size = [], 0
        page.append(row)
        size += length
    yield Answer(request, {name: page}).encode()


def decode_request(message: bytes) -> Request:
    """The request in a message. Raises RemoteProtocolError."""
    value = load(message)
    args = value.get("args", {})
    try:
        op = Op(value.get("op", ""))
    except ValueError as error:
        raise RemoteProtocolError(f"unknown request {value.get('op')!r}") from error
    if not isinstance(args, dict):
        raise RemoteProtocolError("the arguments of a request must be an object")
    return Request(value["id"], op, args)


def decode_answer(message: bytes) -> Answer:
    """The answer in a message. Raises RemoteProtocolError."""
    value = load(message)
    ok, more, data, error = value.get("ok"), value.get("more", False), value.get("data", {}), value.get("error")
    if not isinstance(ok, bool) or not isinstance(more, bool) or not isinstance(data, dict):
        raise RemoteProtocolError("an answer needs ok, more and data")
    if ok:
        return Answer(value["id"], data, None, more)
    if not isinstance(error, str):
        raise RemoteProtocolError("a refusal needs its error")
    return Answer(value["id"], {}, error, more)
