"""The frames inside an opened cell: their layouts, and a codec between bytes and values for Python.

Place on a packet's way: "frames". The kernels of nyx.stream parse and write the frames that carry data by these constants;
this codec serves rare frames and tests. Integers are big-endian. Source: docs/protocol.md, "Frames".

    `decode(cell)` takes the 1208 bytes and returns every frame before the padding, or raises RemoteProtocolError;
    `encode(frames)` gives 1208 bytes back. A STREAM frame without length fills the cell and so comes last.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import FRAMES_SIZE, STREAM_HEADER_SIZE

PADDING: Final = 0x00
STREAM: Final = 0x01
ACK: Final = 0x02
OPEN: Final = 0x03
OPEN_RESULT: Final = 0x04
MAX_STREAM_DATA: Final = 0x05
MAX_CONNECTION_DATA: Final = 0x06
RESET_STREAM: Final = 0x07
STOP_SENDING: Final = 0x08
DATAGRAM: Final = 0x09
LOCALIZED_STRING: Final = 0x20
SETTINGS: Final = 0x30
PING: Final = 0x31
PONG: Final = 0x32
PATH_CHALLENGE: Final = 0x33
PATH_RESPONSE: Final = 0x34
CLOSE: Final = 0x3F
EXPERIMENT_FIRST: Final = 0x40
PLUGIN_LAST: Final = 0x5F

FLAG_FIN: Final = 1
FLAG_LENGTH: Final = 2
STREAM_LENGTH_SIZE: Final = STREAM_HEADER_SIZE + 2  # with the length field
ACK_SIZE: Final = 16  # with the first range
ACK_RANGE_SIZE: Final = 8
ACK_RANGES_MAX: Final = 32
ACK_DELAY_SHIFT: Final = 13  # units of 8 microseconds, here 8192 ns
OPEN_SIZE: Final = 8  # before the address
RESULT_SIZE: Final = 8  # without the address
MAX_STREAM_DATA_SIZE: Final = 9
MAX_CONNECTION_DATA_SIZE: Final = 9
RESET_SIZE: Final = 11
STOP_SIZE: Final = 5
SETTINGS_SIZE: Final = 7
PING_SIZE: Final = 9
PATH_SIZE: Final = 17
CLOSE_SIZE: Final = 4  # before the reason
DATAGRAM_SIZE: Final = 5  # before the data

KIND_TCP: Final = 1
KIND_UDP: Final = 2
FORM_NAME: Final = 1
FORM_IPV4: Final = 4
FORM_IPV6: Final = 6
SETTING_MAX_STREAMS: Final = 1
SETTING_MAX_DATA: Final = 2
SETTING_IDLE_TIMEOUT: Final = 3
ID_MAX: Final = 65535
OFFSET_LIMIT: Final = 1 << 48
NAME_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes of a stream at an offset; `fill`: no length field, the data reaches the cell's end."""

    stream: int
    offset: int
    data: bytes
    fin: bool = False
    fill: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """Received cell sequences as (lowest, highest), the highest range first; delay in units of 8 us."""

    ranges: tuple[tuple[int, int], ...]
    delay: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """The client asks for a connection to a target."""

    stream: int
    kind: int
    port: int
    form: int
    address: bytes


@dataclass(frozen=True, slots=True)
class OpenResult:
    """The last hop's answer: a SOCKS5 reply code."""

    stream: int
    reply: int
    form: int = FORM_IPV4
    address: bytes = bytes(4)
    port: int = 0


@dataclass(frozen=True, slots=True)
class MaxStreamData:
    """The stream's bytes may go up to this offset."""

    stream: int
    offset: int


@dataclass(frozen=True, slots=True)
class MaxConnectionData:
    """The sum of all streams' offsets may go up to this."""

    limit: int


@dataclass(frozen=True, slots=True)
class ResetStream:
    """The sender gives up its part of the stream, whose size is `final`."""

    stream: int
    code: int
    final: int


@dataclass(frozen=True, slots=True)
class StopSending:
    """The receiver wants no more of the stream."""

    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram; its place is kept, version 0.1 refuses it."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LocalizedString:
    """Text for people, with its BCP 47 language tag; ignored."""

    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class Settings:
    """One setting."""

    id: int
    value: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a PONG with the same nonce."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a PING."""

    nonce: int


@dataclass(frozen=True, slots=True)
class PathChallenge:
    """Asks for a PATH_RESPONSE with the same 16 bytes."""

    token: bytes


@dataclass(frozen=True, slots=True)
class PathResponse:
    """Answers a PATH_CHALLENGE."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The circuit ends."""

    code: int
    reason: str = ""


Frame = (
    Stream | Ack | Open | OpenResult | MaxStreamData | MaxConnectionData | ResetStream | StopSending | Datagram
    | LocalizedString | Settings | Ping | Pong | PathChallenge | PathResponse | Close
)  # fmt: skip


def _u(value: int, size: int) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise LocalProtocolError(f"{value} does not fit {size} bytes")
    return value.to_bytes(size, "big")


def _ack(frame: Ack) -> bytes:
    if not 1 <= len(frame.ranges) <= ACK_RANGES_MAX:
        raise LocalProtocolError(f"an ACK of {len(frame.ranges)} ranges")
    low, high = frame.ranges[0]
    out = [_u(ACK, 1), _u(high, 8), _u(frame.delay, 2), _u(len(frame.ranges), 1), _u(high - low + 1, 4)]
    for next_low, next_high in frame.ranges[1:]:
        out += [_u(low - next_high - 1, 4), _u(next_high - next_low + 1, 4)]
        low = next_low
    return b"".join(out)


def _stream(frame: Stream) -> bytes:
    flags = (FLAG_FIN if frame.fin else 0) | (0 if frame.fill else FLAG_LENGTH)
    length = b"" if frame.fill else _u(len(frame.data), 2)
    return _u(STREAM, 1) + _u(flags, 1) + _u(frame.stream, 2) + _u(frame.offset, 6) + length + frame.data


def _close(frame: Close) -> bytes:
    reason = frame.reason.encode()
    return _u(CLOSE, 1) + _u(frame.code, 2) + _u(len(reason), 1) + reason


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one frame. Raises LocalProtocolError for a field out of range."""
    match frame:
        case Stream():
            return _stream(frame)
        case Ack():
            return _ack(frame)
        case Open():
            target = _u(frame.form, 1) + _u(len(frame.address), 1) + frame.address
            return _u(OPEN, 1) + _u(frame.stream, 2) + _u(frame.kind, 1) + _u(frame.port, 2) + target
        case OpenResult():
            bound = _u(frame.form, 1) + _u(len(frame.address), 1) + frame.address + _u(frame.port, 2)
            return _u(OPEN_RESULT, 1) + _u(frame.stream, 2) + _u(frame.reply, 1) + bound
        case MaxStreamData():
            return _u(MAX_STREAM_DATA, 1) + _u(frame.stream, 2) + _u(frame.offset, 6)
        case MaxConnectionData():
            return _u(MAX_CONNECTION_DATA, 1) + _u(frame.limit, 8)
        case ResetStream():
            return _u(RESET_STREAM, 1) + _u(frame.stream, 2) + _u(frame.code, 2) + _u(frame.final, 6)
        case StopSending():
            return _u(STOP_SENDING, 1) + _u(frame.stream, 2) + _u(frame.code, 2)
        case Close():
            return _close(frame)
        case _:
            return _encode_rare(frame)


def _encode_rare(frame: Datagram | LocalizedString | Settings | Ping | Pong | PathChallenge | PathResponse) -> bytes:
    match frame:
        case Datagram():
            return _u(DATAGRAM, 1) + _u(frame.stream, 2) + _u(len(frame.data), 2) + frame.data
        case LocalizedString():
            tag, text = frame.tag.encode(), frame.text.encode()
            return _u(LOCALIZED_STRING, 1) + _u(len(tag), 1) + tag + _u(len(text), 2) + text
        case Settings():
            return _u(SETTINGS, 1) + _u(frame.id, 2) + _u(frame.value, 4)
        case Ping():
            return _u(PING, 1) + _u(frame.nonce, 8)
        case Pong():
            return _u(PONG, 1) + _u(frame.nonce, 8)
        case PathChallenge(token) | PathResponse(token):
            if len(token) != PATH_SIZE - 1:
                raise LocalProtocolError(f"a path token of {len(token)} bytes")
            return _u(PATH_CHALLENGE if isinstance(frame, PathChallenge) else PATH_RESPONSE, 1) + token


def encode(frames: Iterable[Frame]) -> bytes:
    """The frames of a cell, padded to 1208 bytes. Raises LocalProtocolError when they do not fit."""
    data = b"".join(map(encode_frame, frames))
    if len(data) > FRAMES_SIZE:
        raise LocalProtocolError(f"frames of {len(data)} bytes do not fit a cell")
    return data + bytes(FRAMES_SIZE - len(data))


class _Reader:
    """Takes fields off the cell; running past its end is the peer's violation."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def raw(self, size: int) -> bytes:
        if size > self.left():
            raise RemoteProtocolError("a frame runs past its cell", int(ErrorCode.PROTOCOL_VIOLATION))
        self.at += size
        return self.data[self.at - size : self.at]

    def u(self, size: int) -> int:
        return int.from_bytes(self.raw(size), "big")

    def text(self, size: int) -> str:
        try:
            return self.raw(size).decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("text that is not UTF-8", int(ErrorCode.PROTOCOL_VIOLATION)) from error


def _violation(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, int(ErrorCode.PROTOCOL_VIOLATION))


def _read_stream(r: _Reader) -> Stream:
    flags, stream, offset = r.u(1), r.u(2), r.u(6)
    if flags & ~(FLAG_FIN | FLAG_LENGTH):
        raise _violation(f"STREAM flags {flags:#x}")
    data = r.raw(r.u(2) if flags & FLAG_LENGTH else r.left())
    if offset + len(data) >= OFFSET_LIMIT:
        raise _violation("a stream longer than 2^48 - 1")
    return Stream(stream, offset, data, bool(flags & FLAG_FIN), not flags & FLAG_LENGTH)


def _read_ack(r: _Reader) -> Ack:
    high, delay, count, length = r.u(8), r.u(2), r.u(1), r.u(4)
    if not 1 <= count <= ACK_RANGES_MAX:
        raise _violation(f"an ACK of {count} ranges")
    ranges: list[tuple[int, int]] = []
    for i in range(count):
        if i:
            gap, length = r.u(4), r.u(4)
            high = ranges[-1][0] - gap - 1
            if gap < 1:
                raise _violation("an ACK gap of no cells")
        if length < 1 or high - length + 1 < 0:
            raise _violation("an ACK range of no cells, or below cell 0")
        ranges.append((high - length + 1, high))
    return Ack(tuple(ranges), delay)


def _read_open(r: _Reader) -> Open:
    stream, kind, port, form = r.u(2), r.u(1), r.u(2), r.u(1)
    address = r.raw(r.u(1))
    if kind not in (KIND_TCP, KIND_UDP) or not port or not address_fits(form, address):
        raise _violation("an OPEN with a kind, port or address that does not exist")
    return Open(stream, kind, port, form, address)


def address_fits(form: int, address: bytes) -> bool:
    """Whether the bytes are an address of this form; a form that we do not know may hold anything."""
    if form == FORM_NAME:
        return len(address) > 0 and NAME_BYTES.issuperset(address)
    return len(address) == {FORM_IPV4: 4, FORM_IPV6: 16}.get(form, len(address))


def _read_result(r: _Reader) -> OpenResult:
    stream, reply, form = r.u(2), r.u(1), r.u(1)
    return OpenResult(stream, reply, form, r.raw(r.u(1)), r.u(2))


_READERS: Final[dict[int, Callable[[_Reader], Frame]]] = {
    STREAM: _read_stream,
    ACK: _read_ack,
    OPEN: _read_open,
    OPEN_RESULT: _read_result,
    MAX_STREAM_DATA: lambda r: MaxStreamData(r.u(2), r.u(6)),
    MAX_CONNECTION_DATA: lambda r: MaxConnectionData(r.u(8)),
    RESET_STREAM: lambda r: ResetStream(r.u(2), r.u(2), r.u(6)),
    STOP_SENDING: lambda r: StopSending(r.u(2), r.u(2)),
    DATAGRAM: lambda r: Datagram(r.u(2), r.raw(r.u(2))),
    LOCALIZED_STRING: lambda r: LocalizedString(r.text(r.u(1)), r.text(r.u(2))),
    SETTINGS: lambda r: Settings(r.u(2), r.u(4)),
    PING: lambda r: Ping(r.u(8)),
    PONG: lambda r: Pong(r.u(8)),
    PATH_CHALLENGE: lambda r: PathChallenge(r.raw(16)),
    PATH_RESPONSE: lambda r: PathResponse(r.raw(16)),
    CLOSE: lambda r: Close(r.u(2), r.text(r.u(1))),
}


def decode(cell: bytes) -> list[Frame]:
    """The frames of a cell up to the padding.

    Raises RemoteProtocolError with the code to close with: a frame that does not parse, a type that is unknown or has no
    place in a cell, or one (0x40 to 0x5F) that this version refuses.
    """
    r = _Reader(cell)
    frames: list[Frame] = []
    while r.left():
        kind = r.u(1)
        if kind == PADDING:
            break
        if EXPERIMENT_FIRST <= kind <= PLUGIN_LAST:
            raise RemoteProtocolError(f"frame type {kind:#x} was not negotiated", int(ErrorCode.UNSUPPORTED_CAP))
        if kind not in _READERS:
            raise _violation(f"unknown frame type {kind:#x}")
        frames.append(_READERS[kind](r))
    return frames
