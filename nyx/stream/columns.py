"""The columns of connections and streams: who writes which word, what is primary, what is rebuilt.

Place on a packet's way: the state behind "frames -> stream -> edge". A connection is one end of a circuit. Two parties share
a stream's row, both in the worker's one thread: the engine (this room) and the pumps between rings and TCP sockets (shards).

    word       written by   meaning (byte offsets are absolute; they never wrap)
    tx_head    pump         bytes the application has written; commit word: stored after the bytes
    tx_base    engine       lowest byte not acknowledged; the pump may write up to tx_base + ring
    rx_ready   engine       bytes received without a gap; commit word: stored after the bytes
    rx_tail    pump         bytes the application has taken; the engine may write up to rx_tail + ring
    fd, kernel_in, kernel_out, tcp_state          pump alone; the engine never looks
    all others engine alone

    offset o of stream row r is byte  r * ring + (o & (ring - 1))  of "stream_tx" or "stream_rx", and bit o & (ring - 1) of the
    row's part of "stream_bits": received (or acknowledged) beyond a gap. Order of stores: bytes, bit, (rx_ready), later the ACK.

A killed worker leaves primary words whole: each is one aligned 8-byte store. Everything that takes several stores (what is in
flight, what is lost and waits, received ranges, the lists) is derived: `nyx.stream.rebuild` makes it anew at a worker's start
by treating every unacknowledged byte and frame as unsent and every unreported cell as lost. Nothing is then wrong, only sent
twice: frames are idempotent by offset.

    stream:      FREE -> EARLY (data before its OPEN) -> OPENING (no answer yet) -> OPEN -> DONE (both parts ended) -> FREE
    connection:  FREE -> LIVE -> CLOSING (a CLOSE waits to be sent) -> DONE -> FREE
"""

from typing import Any, Final

import numpy as np

from nyx.columns import Column

# ---------------------------------------------------------------- bounds, with unit and reason
FLIGHT: Final = 4096  # outstanding cell sequences a connection remembers; a window must stay below it
FLIGHT_MASK: Final = FLIGHT - 1
WAITING: Final = 2 * FLIGHT  # lost pieces that wait: those in flight, doubled because a resent piece may be cut in two
IDS: Final = 32768  # client stream ids are even: id / 2 is an index
RANGES: Final = 32  # ACK ranges kept and sent (docs/protocol.md, "ACK")
REFUSALS: Final = 8  # OPENs being refused at a time; more are dropped as lost
STREAMS_MAX: Final = 1024  # streams of a connection at a time
ADDRESS: Final = 256  # bytes of a row for the target's address: length, form and up to 255 bytes are kept apart
STREAM_WINDOW: Final = 1 << 20  # bytes; both ends assume it before the first MAX_STREAM_DATA
CONNECTION_WINDOW: Final = 4 << 20
STREAM_WINDOW_MAX: Final = 16 << 20
CONNECTION_WINDOW_MAX: Final = 64 << 20
OFFSET_MAX: Final = (1 << 48) - 1
NEVER: Final = 1 << 62  # a time that does not come
CELLS_PER_STREAM_TURN: Final = 8  # cells of one stream before the next stream's: fewer sockets to wake at the other end
CELLS_PER_CONNECTION_TURN: Final = 32

# ---------------------------------------------------------------- states
FREE: Final = 0
EARLY: Final = 1
OPENING: Final = 2
OPEN: Final = 3
DONE: Final = 4

LIVE: Final = 1
CLOSING: Final = 2
# DONE (4) serves connections too.

# A record of a cell in flight
IN_FLIGHT: Final = 1
ACKED: Final = 2
LOST: Final = 3

# Frames of a stream that wait to be sent, or that a cell carried
DO_OPEN: Final = 1
DO_RESULT: Final = 2
DO_WINDOW: Final = 4
DO_RESET: Final = 8
DO_STOP: Final = 16
DO_FIN: Final = 32  # only in records: the FIN of a STREAM frame

# Frames of a connection that wait to be sent, or that a cell carried
DO_LIMIT: Final = 1
DO_PING: Final = 2
DO_PONG: Final = 4
DO_RESPONSE: Final = 8
DO_CLOSE: Final = 16
DO_REFUSE: Final = 32

# ---------------------------------------------------------------- events: bit 1 << kind of a row's "events"
OPENED: Final = 1
RESULT: Final = 2
READABLE: Final = 3
WRITABLE: Final = 4
FINISHED: Final = 5
STOPPED: Final = 6
RESET: Final = 7
CLOSED: Final = 8
CONNECTION_CLOSED: Final = 9
PROTOCOL_ERROR: Final = 10
PONG: Final = 11
EVENT_KINDS: Final = 12

# close codes beside those of the wire: why a connection ended without a CLOSE of the peer
CLOSED_SILENT: Final = 0x10000  # nothing acknowledged for 30 s, or nothing heard for the idle time
CLOSED_LOCALLY: Final = 0x10001  # by our own close_connection


def _words(text: str, kind: str = "i8") -> list[tuple[str, str]]:
    return [(name, kind) for name in text.split()]


CONNECTION: Final = np.dtype(
    [
        *_words("state client max_cells max_streams opened_at close_code disowned"),
        *_words("in_hand crashes"),  # 1 while a worker is at this row; workers that ended by a fault while they were
        # primary: sequences, limits, what was promised
        *_words(
            "sequence_next received_next streams opened ids_top control challenge_a challenge_b ping_nonce pong_nonce pong_seen"
        ),
        *_words("data_sent data_max data_in data_limit consumed window window_at last_in last_out idle_limit early_at keepalive"),
        # derived, the lists and the events
        *_words("ready work events listed starved lost_head lost_tail"),
        # derived, what we have received and not acknowledged yet
        *_words("ack_count ack_waiting ack_due ack_at ack_every largest_at round_at round_cells"),
        # derived, what we have sent
        *_words("flight oldest acked_next lost_low lost_until loss_at pto_count eliciting_at progress_at probes reorder"),
        *_words("srtt rttvar min_rtt latest_rtt min_at"),
        # congestion control
        *_words("cwnd ssthresh w_max w_est k undo_cwnd undo_ssthresh", "f8"),
        *_words("epoch_at recovery_next undo_left cwnd_round round_min round_last round_samples round_flight css_left css_min"),
        *_words("next_send interval pace_at"),
        # counters
        *_words("cells_in cells_out acks_in acks_out lost spurious probed dropped resent bytes_in bytes_out reductions"),
    ],
    align=True,
)

STREAM: Final = np.dtype(
    [
        *_words("state connection tx_head tx_base tx_fin rx_ready rx_tail rx_final fd kernel_in kernel_out tcp_state id error"),
        *_words("born kind port form address_size opened_at result answered released control"),
        *_words("tx_next tx_top tx_max tx_held fin_state reset_state reset_code failed"),
        *_words("in_hand crashes"),
        *_words("rx_held rx_top rx_limit rx_window window_at rx_credit rx_stop stop_code rx_reset peer_stop"),
        *_words("work_next work_prev working starved events listed orphan"),
    ],
    align=True,
)
"""rx_final, rx_reset, peer_stop and result hold their value + 1 (0: none); work_next and work_prev a row + 1. fin_state and
reset_state: 0 none, 1 sent or to be sent, 2 acknowledged. answered: our OPEN or OPEN_RESULT was acknowledged. orphan: the
connection is gone. failed: the OPEN was refused, or the connection is gone."""

SENT: Final = np.dtype(
    [*_words("sequence sent offset covered"), *_words("stream born length control connection_control state", "i4")], align=True
)
"""What cell `sequence` carried: of one stream its control frames and one piece of data, of the connection its frames, and
an ACK up to `covered` - 1 (0: none). Derived."""

EVENT: Final = np.dtype(_words("kind connection stream value"), align=True)

# ---------------------------------------------------------------- the desk: one vector of derived words
DESK_READY: Final = 0  # head and count of the queue of connections that may have something to send
DESK_EVENTS: Final = 2  # head and count of the queue of rows with events
DESK_FREE: Final = 4  # how many stream rows are free
DESK_TIMER: Final = 5  # no timer is due before this time
DESK_CONNECTIONS: Final = 6
DESK_STREAMS: Final = 7
DESK_RING: Final = 8
DESK_TX: Final = 9  # addresses of stream_tx, stream_rx
DESK_RX: Final = 10
DESK_BORN: Final = 11  # streams ever born here: tells rows' lives apart
DESK_ROWS: Final = 12  # address of "streams"
DESK_LINKS: Final = 13  # address of "connections"
DESK_TOP: Final = 14  # rows of streams from here on are free: who looks at all streams stops there
DESK_HEADER: Final = 16  # then: ready queue, event queue, free rows, ranges (lo, hi), refusals


def stream_offset(field: str) -> int:
    """Byte offset of a field of STREAM, for commits."""
    return int(STREAM.fields[field][1])  # type: ignore[index]


def connection_offset(field: str) -> int:
    """Byte offset of a field of CONNECTION, for commits."""
    return int(CONNECTION.fields[field][1])  # type: ignore[index]


def desk_size(connections: int, streams: int) -> int:
    """Words of the desk: header, ready queue, event queue, free rows, ranges."""
    return DESK_HEADER + connections + (connections + streams) + streams + connections * 2 * RANGES


def stream_columns(connections: int, streams: int, ring: int = STREAM_WINDOW) -> list[Column]:
    """The columns of one worker's connections and streams; `ring` bytes a stream and direction, a power of two >= 1 MiB.

    Memory is touched, and so committed, only as connections and streams use it.
    """
    if ring < STREAM_WINDOW or ring & (ring - 1):
        raise ValueError(
            f"a stream's ring has {ring} bytes; it must be a power of two and hold the first window, {STREAM_WINDOW}"
        )
    byte, word = np.dtype(np.uint8), np.dtype(np.int64)
    return [
        Column("connections", CONNECTION, connections),
        Column("streams", STREAM, streams),
        Column("stream_ids", np.dtype(np.int32), connections * IDS),
        Column("stream_addresses", byte, streams * ADDRESS),
        Column("stream_refusals", word, connections * REFUSALS),
        Column("stream_tx", byte, streams * ring),
        Column("stream_rx", byte, streams * ring),
        Column("stream_bits", byte, 2 * streams * ring // 8),
        Column("stream_sent", SENT, connections * FLIGHT),
        Column("stream_lost", word, connections * WAITING * 3),
        Column("stream_desk", word, desk_size(connections, streams)),
    ]


Record = Any  # one row of CONNECTION, STREAM or SENT: a view, in Python and in compiled code
