"""Frames of the link channel: what circuit id 0 carries, protected by the link alone.

Place on a packet's way: a packet of type 1 that has been opened is decoded here and handed to the link's channel. `encode`
and `decode` are inverses; decoding is strict: an unknown type, a frame cut short or bytes after the padding are a violation,
and then nothing of the packet is used. Source: docs/protocol.md, "Link channel".
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import CELL_SIZE, CID_SIZE, SESSIONS_PER_LINK

LINK_FRAMES_SIZE: Final = CELL_SIZE  # bytes of frames in one packet


class FrameType(IntEnum):
    """First byte of a frame."""

    PADDING = 0x00
    LINK_ACK = 0x0A
    NEW_CID = 0x0B
    DESTROY = 0x0C
    RECEIVE_WINDOW = 0x0D
    FEC_CHANGE = 0x0E
    CRYPTO = 0x10
    SETTINGS = 0x30
    PING = 0x31
    PONG = 0x32
    CLOSE = 0x3F


class CryptoMessage(IntEnum):
    """What a CRYPTO frame carries."""

    HELLO = 0
    KEM_EK = 1
    KEM_CT = 2


class LinkAck(NamedTuple):
    """Control numbers received on this session: `largest`, and largest - 1 - i for every set bit i."""

    largest: int
    bitmap: int


class NewCid(NamedTuple):
    """The CID under which the sender will receive this session (0-3) in the next generation."""

    session: int
    cid: bytes


class Destroy(NamedTuple):
    """A circuit ends on this link; the reason is a hint (`DestroyReason`)."""

    circuit: int
    reason: int


class ReceiveWindow(NamedTuple):
    """Packets the sender of the frame can hold unread."""

    packets: int


class FecChange(NamedTuple):
    """From packet number `start` on, blocks have k data and m parity packets. Known, and refused: no version negotiates it."""

    start: int
    k: int
    m: int


class Crypto(NamedTuple):
    """A message of the in-session key exchange."""

    message: int
    data: bytes


class Settings(NamedTuple):
    """A setting of the sender; unknown ids are ignored."""

    id: int
    value: int


class Ping(NamedTuple):
    """Asks for a Pong with the same nonce."""

    nonce: int


class Pong(NamedTuple):
    """Answers a Ping."""

    nonce: int


class Close(NamedTuple):
    """The link ends, with all its circuits."""

    code: int
    reason: bytes = b""


Frame = LinkAck | NewCid | Destroy | ReceiveWindow | FecChange | Crypto | Settings | Ping | Pong | Close

_FIXED: Final[dict[int, tuple[type[Frame], struct.Struct]]] = {
    FrameType.LINK_ACK: (LinkAck, struct.Struct(">QQ")),
    FrameType.NEW_CID: (NewCid, struct.Struct(f">B{CID_SIZE}s")),
    FrameType.DESTROY: (Destroy, struct.Struct(">IB")),
    FrameType.RECEIVE_WINDOW: (ReceiveWindow, struct.Struct(">I")),
    FrameType.FEC_CHANGE: (FecChange, struct.Struct(">QBB")),
    FrameType.SETTINGS: (Settings, struct.Struct(">HI")),
    FrameType.PING: (Ping, struct.Struct(">Q")),
    FrameType.PONG: (Pong, struct.Struct(">Q")),
}
_TYPE_OF: Final = {kind: (number, form) for number, (kind, form) in _FIXED.items()}
_CRYPTO: Final = struct.Struct(">BH")
_CLOSE: Final = struct.Struct(">HB")
LINK_ACK_SIZE: Final = 1 + _FIXED[FrameType.LINK_ACK][1].size


def _encode_one(frame: Frame) -> bytes:
    if isinstance(frame, Crypto):
        return bytes((FrameType.CRYPTO,)) + _CRYPTO.pack(frame.message, len(frame.data)) + frame.data
    if isinstance(frame, Close):
        reason = frame.reason[:255]
        return bytes((FrameType.CLOSE,)) + _CLOSE.pack(frame.code, len(reason)) + reason
    number, form = _TYPE_OF[type(frame)]
    return bytes((number,)) + form.pack(*frame)


def encode(frames: Iterable[Frame]) -> bytes:
    """The frames one after the other, without padding. Raises LocalProtocolError when they do not fit one packet."""
    try:
        found = b"".join(map(_encode_one, frames))
    except struct.error as error:
        raise LocalProtocolError(f"a field does not fit its frame: {error}") from None
    if len(found) > LINK_FRAMES_SIZE:
        raise LocalProtocolError(f"{len(found)} bytes of frames; a packet takes {LINK_FRAMES_SIZE}")
    return found


class _Reader:
    """The rest of a packet's frames."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        found = self._data[self.at : self.at + size]
        if len(found) != size:
            raise RemoteProtocolError("a frame is cut short")
        self.at += size
        return found


def _decode_one(reader: _Reader, number: int) -> Frame:
    if number == FrameType.CRYPTO:
        message, size = _CRYPTO.unpack(reader.take(_CRYPTO.size))
        if message not in set(CryptoMessage):
            raise RemoteProtocolError(f"unknown CRYPTO message {message}")
        return Crypto(message, reader.take(size))
    if number == FrameType.CLOSE:
        code, size = _CLOSE.unpack(reader.take(_CLOSE.size))
        return Close(code, reader.take(size))
    if number not in _FIXED:
        raise RemoteProtocolError(f"unknown link frame type {number:#04x}")
    kind, form = _FIXED[number]
    frame = kind(*form.unpack(reader.take(form.size)))
    if isinstance(frame, NewCid) and frame.session >= SESSIONS_PER_LINK:
        raise RemoteProtocolError(f"NEW_CID names session {frame.session}")
    return frame


def decode(data: bytes) -> list[Frame]:
    """The frames of one packet, up to its padding.

    Raises RemoteProtocolError with the code to close with: a violation, or UNSUPPORTED_CAP for what is known but refused.
    """
    reader = _Reader(data)
    found: list[Frame] = []
    while reader.at < len(data):
        number = reader.take(1)[0]
        if number == FrameType.PADDING:
            if any(data[reader.at :]):
                raise RemoteProtocolError("bytes after the padding")
            break
        frame = _decode_one(reader, number)
        if isinstance(frame, FecChange):
            raise RemoteProtocolError("FEC is not negotiated on this link", ErrorCode.UNSUPPORTED_CAP)
        found.append(frame)
    return found
