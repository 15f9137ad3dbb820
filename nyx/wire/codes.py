"""Every code with a name: why a packet or cell was dropped, what closes a connection, a stream or a circuit.

Place on a packet's way: any step may end it with a `Drop`; kernels return these numbers, statistics count them under
DROP_LABELS, nothing is ever answered. The other tables go over the wire. Source: docs/protocol.md, "Codes".
"""

from enum import IntEnum
from typing import Final


class Drop(IntEnum):
    """Why a packet or a cell went no further. OK is 0; members are contiguous and only appended."""

    OK = 0
    SHORT = 1  # not 1280 bytes
    UNKNOWN_CID = 2  # no live session has this connection id
    BAD_TAG = 3  # the link seal does not verify
    REPLAYED = 4  # authentic, but this number was accepted before
    TOO_OLD = 5  # authentic, but behind the replay window
    BAD_ZEROS = 6  # the zero bytes under the seal, or those of an opened cell, are not zero
    UNKNOWN_CIRCUIT = 7  # the link has no such circuit
    REPEATED_CELL = 8  # the hop's replay filter has seen this cell
    BAD_HEADER = 9  # type, kind, slot or length that this version does not know
    NOT_READY = 10  # a cell on a link that is not upgraded, or on a circuit that is not built
    NO_BUFFER = 11  # no free slot or queue place
    FORGED_HANDSHAKE = 12  # mac1 is wrong
    STALE_HANDSHAKE = 13  # its time is outside what clocks may differ
    REPLAYED_HANDSHAKE = 14  # seen before
    BAD_BUILD = 15  # a build record that does not open or breaks a rule
    BAD_FRAME = 16  # a frame that does not parse
    OVERFLOW = 17  # more than a peer may have in flight
    TOO_FAR = 18  # an opened cell's sequence is further ahead than the window is long
    BAD_CELL = 19  # an opened cell whose zero bytes or sequence prove that somebody changed it
    BAD_HANDSHAKE = 20  # authentic mac1, but the sealed part does not open or breaks a rule
    NO_ROUTE = 21  # nowhere to send it
    NO_COOKIE = 22  # an initiation that does not prove its address, under load: a cookie went there, or nothing
    OVER_QUOTA = 23  # its source has had its share of handshakes, under load
    NO_WORK = 24  # a build without the proof of work that is asked now, and no time to say so
    OLD_EPOCH = 25  # a cell of a layer epoch whose keys are gone


DROP_LABELS: Final[tuple[str, ...]] = tuple(reason.name.lower() for reason in Drop)


class ErrorCode(IntEnum):
    """What a CLOSE frame carries: the specification's error codes."""

    NO_ERROR = 0x00
    PROTOCOL_VIOLATION = 0x01
    FLOW_CONTROL_ERROR = 0x02
    VERSION_MISMATCH = 0x03
    VERSION_MISMATCH_EXTENDED = 0x04
    PATH_VALIDATION_FAILED = 0x05
    INTERNAL_ERROR = 0x06
    UNSUPPORTED_CAP = 0x07
    CRYPTO_FAIL = 0x10


class StreamCode(IntEnum):
    """What RESET_STREAM and STOP_SENDING carry."""

    NO_ERROR = 0
    CANCELLED = 0x100
    TARGET_RESET = 0x101
    TIMEOUT = 0x102
    LIMIT = 0x103
    INTERNAL = 0x104


class DestroyReason(IntEnum):
    """What DESTROY carries: why a circuit ends."""

    NONE = 0
    VIOLATION = 1
    EXPIRED = 2
    RESOURCES = 3
    NEXT_UNREACHABLE = 4
    LINK_LOST = 5
    FAILED_CELL = 6
    DEADLINE = 7
    KEY_LIMIT = 8
