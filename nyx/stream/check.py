"""Is this cell legal? Every frame is looked at, nothing is changed: a bad cell leaves no trace but the end of its connection.

Results of the functions here: a positive number of bytes is a legal frame; LATER says that the cell cannot be taken now and
counts as lost (it is not acknowledged, so its frames come again); anything below is minus a close code.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, inline
from nyx.stream.columns import (
    DESK_FREE,
    DONE,
    EARLY,
    FREE,
    IDS,
    OFFSET_MAX,
    REFUSALS,
    STREAM_WINDOW,
    STREAMS_MAX,
    Record,
)
from nyx.stream.lifecycle import SECOND, Ids, Words
from nyx.stream.octets import Bytes, read_u48
from nyx.stream.queues import Desk, Rows
from nyx.wire.codes import ErrorCode
from nyx.wire.frames import (
    ACK,
    ACK_RANGE_SIZE,
    ACK_RANGES_MAX,
    ACK_SIZE,
    CLOSE,
    CLOSE_SIZE,
    DATAGRAM,
    EXPERIMENT_FIRST,
    FLAG_FIN,
    FLAG_LENGTH,
    FORM_IPV4,
    FORM_IPV6,
    FORM_NAME,
    KIND_TCP,
    KIND_UDP,
    LOCALIZED_STRING,
    MAX_CONNECTION_DATA,
    MAX_CONNECTION_DATA_SIZE,
    MAX_STREAM_DATA,
    MAX_STREAM_DATA_SIZE,
    OPEN,
    OPEN_RESULT,
    OPEN_SIZE,
    PADDING,
    PATH_CHALLENGE,
    PATH_RESPONSE,
    PATH_SIZE,
    PING,
    PING_SIZE,
    PLUGIN_LAST,
    PONG,
    RESET_SIZE,
    RESET_STREAM,
    RESULT_SIZE,
    SETTINGS,
    SETTINGS_SIZE,
    STOP_SENDING,
    STOP_SIZE,
    STREAM,
    STREAM_LENGTH_SIZE,
)
from nyx.wire.geometry import STREAM_HEADER_SIZE
from nyx.wire.packet import read_u16, read_u32, read_u64

LEGAL: Final = 0
LATER: Final = -1
_CODES: Final = -256  # minus a close code, below this
VIOLATION: Final = _CODES - int(ErrorCode.PROTOCOL_VIOLATION)
TOO_MUCH: Final = _CODES - int(ErrorCode.FLOW_CONTROL_ERROR)
UNSUPPORTED: Final = _CODES - int(ErrorCode.UNSUPPORTED_CAP)

# What `find_stream` says beside a row
OVER: Final = -1  # the stream ended: ignore the frame
AHEAD: Final = -2  # not opened yet, as far as we know
NONSENSE: Final = -3  # cannot exist
OPEN_AGAIN: Final = 10  # seconds after a stream's end in which an OPEN of its id is a late copy
DATA_AGAIN: Final = 20  # seconds after which data of its id belongs to the next stream; the client waits 30


@inline
def close_code(verdict: Int) -> Int:
    """The code to close with, from a verdict below LATER."""
    return _CODES - verdict


@called
def find_stream(c: Record, connection: Int, streams: Rows, ids: Ids, number: Int, wait: Int, now: Int) -> Int:
    """The row of stream `number`, or OVER, AHEAD or NONSENSE; an id that ended `wait` seconds ago may come anew."""
    if number == 0 or number & 1:
        return np.int64(NONSENSE)
    entry = np.int64(ids[connection * IDS + (number >> 1)])
    if entry > 0:
        s = streams[entry - 1]
        if s["state"] != FREE and s["connection"] == connection and s["id"] == number:
            return entry - 1
        return np.int64(OVER)
    if c["client"]:
        return np.int64(OVER if entry < 0 else NONSENSE)
    if entry < 0 and now // SECOND + entry + 1 < wait:
        return np.int64(OVER)
    return np.int64(AHEAD)


@inline
def _check_sizes(c: Record, s: Record, end: Int, final: Int) -> Int:
    """Bytes up to `end` of a live stream, which are its last if `final`."""
    if end > s["rx_limit"] or end - s["rx_top"] > c["data_limit"] - c["data_in"]:
        return np.int64(TOO_MUCH)
    if s["rx_final"] > 0 and (end > s["rx_final"] - 1 or (final and end != s["rx_final"] - 1)):
        return np.int64(VIOLATION)
    if final and end < s["rx_top"]:
        return np.int64(VIOLATION)
    return np.int64(LEGAL)


@inline
def _check_stream(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, pool: Bytes, at: Int, end: Int, opening: Int, now: Int
) -> Int:
    if at + STREAM_HEADER_SIZE > end:
        return np.int64(VIOLATION)
    flags = np.int64(pool[at + 1])
    number = read_u16(pool, at + 2)
    offset = read_u48(pool, at + 4)
    header = np.int64(STREAM_LENGTH_SIZE if flags & FLAG_LENGTH else STREAM_HEADER_SIZE)
    if flags & ~(FLAG_FIN | FLAG_LENGTH) or at + header > end:
        return np.int64(VIOLATION)
    size = read_u16(pool, at + STREAM_HEADER_SIZE) if flags & FLAG_LENGTH else end - at - header
    if at + header + size > end or offset + size > OFFSET_MAX:
        return np.int64(VIOLATION)
    row = find_stream(c, connection, streams, ids, number, DATA_AGAIN, now)
    if row >= 0:
        s = streams[row]
        if s["state"] != DONE and s["rx_reset"] == 0:
            verdict = _check_sizes(c, s, offset + size, flags & FLAG_FIN)
            if verdict != LEGAL:
                return verdict
    elif row == NONSENSE:
        return np.int64(VIOLATION)
    elif row == AHEAD:
        if offset + size > STREAM_WINDOW or offset + size > c["data_limit"] - c["data_in"]:
            return np.int64(TOO_MUCH)
        if number != opening and (desk[DESK_FREE] == 0 or c["streams"] >= STREAMS_MAX):
            return np.int64(LATER)
    return header + size


@called
def _check_ack(c: Record, pool: Bytes, at: Int, end: Int) -> Int:
    if at + ACK_SIZE > end:
        return np.int64(VIOLATION)
    high = np.int64(read_u64(pool, at + 1))
    count = np.int64(pool[at + 11])
    size = ACK_SIZE + (count - 1) * ACK_RANGE_SIZE
    if high < 0 or high >= c["sequence_next"] or count < 1 or count > ACK_RANGES_MAX or at + size > end:
        return np.int64(VIOLATION)
    length = read_u32(pool, at + 12)
    low = high - length + 1
    if length < 1 or low < 0:
        return np.int64(VIOLATION)
    for i in range(count - 1):
        gap = read_u32(pool, at + ACK_SIZE + i * ACK_RANGE_SIZE)
        length = read_u32(pool, at + ACK_SIZE + i * ACK_RANGE_SIZE + 4)
        low = low - gap - length
        if gap < 1 or length < 1 or low < 0:
            return np.int64(VIOLATION)
    return size


@inline
def form_is_known(form: Int) -> Int:
    """Whether this version knows the address form."""
    return form == FORM_IPV4 or form == FORM_IPV6 or form == FORM_NAME  # noqa: PLR1714  (a tuple does not compile as well)


@inline
def _address_is_legal(pool: Bytes, at: Int, form: Int, length: Int) -> Int:
    if form == FORM_IPV4:
        return length == 4
    if form == FORM_IPV6:
        return length == 16
    if form != FORM_NAME:
        return True
    for i in range(at, at + length):
        b = np.int64(pool[i])
        letter = 97 <= (b | 32) <= 122 or 48 <= b <= 57
        if not letter and b not in (45, 46, 95):
            return False
    return length > 0


@called
def _check_open(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, refusals: Words, pool: Bytes, at: Int, end: Int, now: Int
) -> Int:
    if c["client"] or at + OPEN_SIZE > end:
        return np.int64(VIOLATION)
    kind, port, form = np.int64(pool[at + 3]), read_u16(pool, at + 4), np.int64(pool[at + 6])
    length = np.int64(pool[at + 7])
    if (kind != KIND_TCP and kind != KIND_UDP) or port == 0 or at + OPEN_SIZE + length > end:  # noqa: PLR1714
        return np.int64(VIOLATION)
    if not _address_is_legal(pool, at + OPEN_SIZE, form, length):
        return np.int64(VIOLATION)
    row = find_stream(c, connection, streams, ids, read_u16(pool, at + 1), OPEN_AGAIN, now)
    if row == NONSENSE:
        return np.int64(VIOLATION)
    if row >= 0 and streams[row]["state"] == DONE:
        return np.int64(LATER)  # the row of the id's last stream lingers
    refuse = kind == KIND_UDP or not form_is_known(form) or desk[DESK_FREE] == 0 or c["streams"] >= STREAMS_MAX
    early = row >= 0 and streams[row]["state"] == EARLY
    if (row == AHEAD and refuse) or (early and (kind == KIND_UDP or not form_is_known(form))):
        for i in range(connection * REFUSALS, (connection + 1) * REFUSALS):
            if refusals[i] == 0:
                return OPEN_SIZE + length
        return np.int64(LATER)
    return OPEN_SIZE + length


@called
def _check_stream_control(
    c: Record, connection: Int, streams: Rows, ids: Ids, pool: Bytes, at: Int, end: Int, kind: Int, opening: Int, now: Int
) -> Int:
    """OPEN_RESULT, MAX_STREAM_DATA, RESET_STREAM, STOP_SENDING: the frames that name a stream which must exist."""
    size = np.int64(STOP_SIZE)
    if kind == OPEN_RESULT:
        if at + RESULT_SIZE > end or c["client"] == 0:
            return np.int64(VIOLATION)
        size = RESULT_SIZE + np.int64(pool[at + 5])
    elif kind == MAX_STREAM_DATA:
        size = np.int64(MAX_STREAM_DATA_SIZE)
    elif kind == RESET_STREAM:
        size = np.int64(RESET_SIZE)
    if at + size > end:
        return np.int64(VIOLATION)
    row = find_stream(c, connection, streams, ids, read_u16(pool, at + 1), DATA_AGAIN, now)
    if row == NONSENSE:
        return np.int64(VIOLATION)
    if (row == AHEAD or (row >= 0 and streams[row]["state"] == EARLY)) and read_u16(pool, at + 1) != opening:
        return np.int64(LATER)
    if row >= 0 and kind == RESET_STREAM:
        s = streams[row]
        if s["state"] != DONE and s["rx_reset"] == 0:
            verdict = _check_sizes(c, s, read_u48(pool, at + 5), 1)
            if verdict != LEGAL:
                return verdict
    return size


@called
def _check_plain(pool: Bytes, at: Int, end: Int, kind: Int) -> Int:
    """Frames that name no stream: their size, or what is wrong with them."""
    size = np.int64(0)
    if kind == MAX_CONNECTION_DATA:
        size = np.int64(MAX_CONNECTION_DATA_SIZE)
    elif kind == SETTINGS:
        size = np.int64(SETTINGS_SIZE)
    elif kind in (PING, PONG):
        size = np.int64(PING_SIZE)
    elif kind in (PATH_CHALLENGE, PATH_RESPONSE):
        size = np.int64(PATH_SIZE)
    elif kind == CLOSE:
        size = CLOSE_SIZE + np.int64(pool[at + 3]) if at + CLOSE_SIZE <= end else np.int64(VIOLATION)
    elif kind == LOCALIZED_STRING:
        if at + 2 > end or at + 4 + np.int64(pool[at + 1]) > end:
            return np.int64(VIOLATION)
        tag = np.int64(pool[at + 1])
        size = 4 + tag + read_u16(pool, at + 2 + tag)
    elif kind == DATAGRAM or EXPERIMENT_FIRST <= kind <= PLUGIN_LAST:
        return np.int64(UNSUPPORTED)
    else:
        return np.int64(VIOLATION)
    return size if size < 0 or at + size <= end else np.int64(VIOLATION)


@inline
def check_cell(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, refusals: Words, pool: Bytes, at: Int, end: Int, now: Int
) -> Int:
    """LEGAL, LATER or minus a close code for the frames at pool[at:end]."""
    opening = np.int64(-1)
    acks = 0
    while at < end:
        kind = np.int64(pool[at])
        if kind == PADDING:
            break
        if kind == STREAM:
            size = _check_stream(desk, c, connection, streams, ids, pool, at, end, opening, now)
        elif kind == ACK:
            acks += 1
            size = _check_ack(c, pool, at, end) if acks == 1 else np.int64(VIOLATION)
        elif kind == OPEN:
            if opening >= 0:
                return np.int64(VIOLATION)
            size = _check_open(desk, c, connection, streams, ids, refusals, pool, at, end, now)
            opening = read_u16(pool, at + 1)
        elif OPEN_RESULT <= kind <= STOP_SENDING and kind != MAX_CONNECTION_DATA:
            size = _check_stream_control(c, connection, streams, ids, pool, at, end, kind, opening, now)
        else:
            size = _check_plain(pool, at, end, kind)
        if size <= 0:
            return size
        at += size
    return np.int64(LEGAL)
