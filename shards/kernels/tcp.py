"""TCP straight into and out of the rings of streams, and the positions that survive a killed worker.

Place on a byte's way: the first step at one end (application's socket -> `pump_in` -> stream_tx) and the last at the other
(stream_rx -> `pump_out` -> socket). All ready sockets of a turn go through one call.

Contract (one worker owns a row at a time; its successor takes over after its death):

    word      written by    after                         means
    tx_head   pump_in       recv() put bytes into the ring  bytes the application sent that are in shared memory
    rx_tail   pump_out      send() took bytes               bytes the application's socket accepted
    tcp_state the edge      see HELD, IN_EOF, OUT_FIN       what is over
    kernel_in, kernel_out   `attach`, before HELD           the socket's counters at ring position 0

Each is stored with store_release and is one commit point. No order of "system call, store" is safe against a kill between the
two, so a successor does not trust tx_head and rx_tail: `recover` asks the kernel how many bytes it handed out and accepted
(TCP_INFO, SIOCINQ, SIOCOUTQ) and sets both right. Handed-out bytes are in the ring already, as recv() writes there directly.
A FIN counts as one byte in those counters, in both directions; OUT_FIN is therefore stored before shutdown() is called.

Results of a pump: bytes moved in the low 32 bits, flags above, errno from bit ERRNO_SHIFT when ERROR is set.
"""

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import address, address_of, foreign, inline, kernel, store_release
from nyx.stream.columns import STREAM, stream_offset

Words = NDArray[np.int64]

BUDGET: Final = 1 << 18  # bytes a stream moves in one call, so that one fast stream does not starve the rest of a turn

BYTES: Final = (1 << 32) - 1  # mask of the bytes moved
EOF: Final = 1 << 32  # in: the application will send no more
FULL: Final = 1 << 33  # in: the ring has no room; call again after WRITABLE
MORE: Final = 1 << 34  # the budget is spent; call again next turn
BLOCKED: Final = 1 << 35  # out: the send buffer is full; call again after EPOLLOUT
FINAL: Final = 1 << 36  # out: everything up to the stream's final size is sent
ERROR: Final = 1 << 37  # the socket is dead
ERRNO_SHIFT: Final = 40

HELD: Final = 1  # tcp_state: the row has a socket
IN_EOF: Final = 2  # the application's end of file was read: read no more
OUT_FIN: Final = 4  # shutdown() was called or is about to be: send no more

_EINTR: Final = 4
_EAGAIN: Final = 11
_EPROTO: Final = 71
_MSG_DONTWAIT: Final = 0x40
_MSG_NOSIGNAL: Final = 0x4000
_IPPROTO_TCP: Final = 6
_TCP_INFO: Final = 11
_SIOCINQ: Final = 0x541B
_SIOCOUTQ: Final = 0x5411
_INFO_WORDS: Final = 32  # 256 bytes of struct tcp_info
_BYTES_ACKED: Final = 15  # word of tcpi_bytes_acked (byte 120)
_BYTES_RECEIVED: Final = 16

COUNT_WORDS: Final = 2 * _INFO_WORDS + 4  # scratch of `tcp_counts`

_HEAD_AT: Final = stream_offset("tx_head")
_TAIL_AT: Final = stream_offset("rx_tail")
_STATE_AT: Final = stream_offset("tcp_state")
_FD_AT: Final = stream_offset("fd")
_ROW_SIZE: Final = STREAM.itemsize

_recv = foreign(None, "recv", "i8", "i4", "i8", "i8", "i4")
_send = foreign(None, "send", "i8", "i4", "i8", "i8", "i4")
_getsockopt = foreign(None, "getsockopt", "i4", "i4", "i4", "i4", "i8", "i8")
_ioctl = foreign(None, "ioctl", "i4", "i4", "i8", "i8")
_errno_location = foreign(None, "__errno_location", "i8")
_memcpy = foreign(None, "memcpy", "i8", "i8", "i8", "i8")


@inline
def _errno(scratch: Any) -> Any:
    """Errno of the call just made; `scratch` is the address of a word to read it through."""
    store_release(scratch, 0)
    _memcpy(scratch, _errno_location(), 4)
    return 0


@kernel("i8", "i8[]", "i8", STREAM, "u1[]", "i8", "i8[]")
def pump_in(rows: Words, n: int, streams: NDArray[Any], tx: NDArray[np.uint8], ring: int, results: Words) -> int:
    """Read each row's socket into its tx ring until it is drained, the ring is full or the budget spent; bytes in all."""
    total = np.int64(0)
    for k in range(n):
        row = np.int64(rows[k])
        s = streams[row]
        fd = np.int64(s["fd"]) - 1
        results[k] = 0
        if fd < 0 or np.int64(s["tcp_state"]) & (HELD | IN_EOF) != HELD:
            continue
        head, base = np.int64(s["tx_head"]), np.int64(s["tx_base"])
        moved, flags = np.int64(0), np.int64(0)
        s["in_hand"] = 1
        while flags == 0:
            free = ring - (head - base)
            at = head & (ring - 1)
            want = min(free, ring - at, BUDGET - moved)
            if want <= 0:
                flags = np.int64(FULL if free <= 0 else MORE)
                break
            got = np.int64(_recv(fd, address(tx) + row * ring + at, want, _MSG_DONTWAIT))
            if got > 0:
                head += got
                moved += got
                store_release(address(streams) + row * _ROW_SIZE + _HEAD_AT, head)
            elif got == 0:
                flags = np.int64(EOF)
            else:
                _errno(address(results) + 8 * k)
                code = np.int64(results[k])
                if code == _EAGAIN:
                    break
                if code != _EINTR:
                    flags = np.int64(ERROR) | (code << ERRNO_SHIFT)
        s["in_hand"] = 0
        results[k] = moved | flags
        total += moved
    return total  # type: ignore[return-value]


@kernel("i8", "i8[]", "i8", STREAM, "u1[]", "i8", "i8[]")
def pump_out(rows: Words, n: int, streams: NDArray[Any], rx: NDArray[np.uint8], ring: int, results: Words) -> int:
    """Send each row's contiguous received bytes until none are left, the socket is full or the budget spent; bytes in all."""
    total = np.int64(0)
    for k in range(n):
        row = np.int64(rows[k])
        s = streams[row]
        fd = np.int64(s["fd"]) - 1
        results[k] = 0
        if fd < 0 or np.int64(s["tcp_state"]) & (HELD | OUT_FIN) != HELD:
            continue
        tail, ready = np.int64(s["rx_tail"]), np.int64(s["rx_ready"])
        final = np.int64(s["rx_final"]) if s["rx_reset"] == 0 else np.int64(0)  # a reset names a final size as well
        moved, flags = np.int64(0), np.int64(0)
        s["in_hand"] = 1
        while flags == 0:
            at = tail & (ring - 1)
            want = min(ready - tail, ring - at, BUDGET - moved)
            if want <= 0:
                if tail >= ready:
                    flags = np.int64(FINAL if final > 0 and tail == final - 1 else 0)
                    break
                flags = np.int64(MORE)
                break
            sent = np.int64(_send(fd, address(rx) + row * ring + at, want, _MSG_DONTWAIT | _MSG_NOSIGNAL))
            if sent >= 0:
                tail += sent
                moved += sent
                store_release(address(streams) + row * _ROW_SIZE + _TAIL_AT, tail)
            else:
                _errno(address(results) + 8 * k)
                code = np.int64(results[k])
                if code == _EAGAIN:
                    flags = np.int64(BLOCKED)
                elif code != _EINTR:
                    flags = np.int64(ERROR) | (code << ERRNO_SHIFT)
        s["in_hand"] = 0
        results[k] = moved | flags
        total += moved
    return total  # type: ignore[return-value]


# ---------------------------------------------------------------- what the kernel counted


class TcpState(IntEnum):
    """Values of tcpi_state (linux/tcp.h) that matter here."""

    ESTABLISHED = 1
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    CLOSING = 11


_FIN_CAME: Final = frozenset({TcpState.TIME_WAIT, TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING})
_FIN_SENT: Final = frozenset({TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.TIME_WAIT, TcpState.LAST_ACK, TcpState.CLOSING})


@kernel("i8", "i8", "i8[]", "i8[]")
def tcp_counts(fd: int, scratch: Words, out: Words) -> int:
    """Put state, bytes handed out and bytes accepted into `out`, each with the FIN that it counts. 0 or an errno.

    Only the network may touch the socket meanwhile: the counters are read until two readings agree.
    """
    at = address(scratch)
    queues = at + 8 * 2 * _INFO_WORDS
    for _ in range(1000):
        for half in range(2):
            scratch[2 * _INFO_WORDS + 2] = 8 * _INFO_WORDS
            if _getsockopt(fd, _IPPROTO_TCP, _TCP_INFO, at + 8 * half * _INFO_WORDS, queues + 16) != 0:
                _errno(queues + 24)
                return np.int64(scratch[2 * _INFO_WORDS + 3])  # type: ignore[return-value]
            if half == 0:
                scratch[2 * _INFO_WORDS] = 0
                scratch[2 * _INFO_WORDS + 1] = 0
                if _ioctl(fd, _SIOCINQ, queues) != 0 or _ioctl(fd, _SIOCOUTQ, queues + 8) != 0:
                    _errno(queues + 24)
                    return np.int64(scratch[2 * _INFO_WORDS + 3])  # type: ignore[return-value]
        state = np.int64(scratch[0]) & 0xFF
        acked, received = np.int64(scratch[_BYTES_ACKED]), np.int64(scratch[_BYTES_RECEIVED])
        same = acked == scratch[_INFO_WORDS + _BYTES_ACKED] and received == scratch[_INFO_WORDS + _BYTES_RECEIVED]
        if same and state == np.int64(scratch[_INFO_WORDS]) & 0xFF:
            out[0] = state
            out[1] = received - np.int64(scratch[2 * _INFO_WORDS])
            out[2] = acked + np.int64(scratch[2 * _INFO_WORDS + 1])
            return 0
    return _EPROTO


class Counts(NamedTuple):
    """What a socket's counters say. `consumed` and `accepted` still count a FIN that came or was sent as one."""

    state: int
    consumed: int
    accepted: int


def counts(fd: int) -> Counts:
    """Counters of a TCP socket that nobody reads or writes meanwhile. Raises OSError."""
    scratch, out = np.zeros(COUNT_WORDS, np.int64), np.zeros(3, np.int64)
    error = int(tcp_counts(fd, scratch, out))
    if error:
        raise OSError(error, f"TCP counters of descriptor {fd}")
    return Counts(*(int(v) for v in out))


@kernel("i8", "i8", "i8")
def _store(at: int, value: int) -> int:
    store_release(at, value)
    return 0


def commit(streams: NDArray[Any], row: int, offset: int, value: int) -> None:
    """Commit one word of a row."""
    _store(address_of(streams) + row * _ROW_SIZE + offset, value)


def attach(streams: NDArray[Any], row: int, fd: int, early: int = 0, reply: int = 0) -> bool:
    """Give the row this connected socket, of which `early` bytes that were read already stand in the tx ring.

    `reply` bytes that are no stream's will be sent first: a life that ends before leaves a row that `recover` calls dead.
    False when the connection is dead already; the row is left as it was.
    """
    try:
        now = counts(fd)
    except OSError:
        return False
    if now.state not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT):
        return False
    s = streams[row]
    s["kernel_in"] = now.consumed - (now.state == TcpState.CLOSE_WAIT) - early
    s["kernel_out"] = now.accepted + reply - int(s["rx_tail"])
    commit(streams, row, _FD_AT, fd + 1)
    commit(streams, row, _STATE_AT, HELD)
    return True


def set_head(streams: NDArray[Any], row: int, head: int) -> None:
    """Commit bytes that were put into the tx ring by hand."""
    commit(streams, row, _HEAD_AT, head)


def mark(streams: NDArray[Any], row: int, flag: int) -> None:
    """Add a flag to the row's tcp_state, before anybody acts on it."""
    commit(streams, row, _STATE_AT, int(streams[row]["tcp_state"]) | flag)


def detach(streams: NDArray[Any], row: int) -> None:
    """The row has no socket any more."""
    commit(streams, row, _STATE_AT, int(streams[row]["tcp_state"]) & ~HELD)
    commit(streams, row, _FD_AT, 0)


class Recovered(IntEnum):
    """What `recover` found."""

    EXACT = 0  # both words were right
    REPAIRED = 1  # a word was torn from its system call and is right now
    DEAD = 2  # the connection was reset while nobody looked: end the stream with an error


def recover(streams: NDArray[Any], row: int, ring: int, socket_error: int) -> Recovered:
    """Set tx_head and rx_tail of a row whose worker died to what its socket's counters say.

    `socket_error` is SO_ERROR, read by the caller before. In state CLOSE the counters do not tell whether a FIN or a reset came:
    it was a FIN only if we had sent ours, no error is pending, and the counted byte beyond tx_head is not a byte of data.
    """
    s = streams[row]
    try:
        now = counts(int(s["fd"]) - 1)
    except OSError:
        return Recovered.DEAD
    head, tail = int(s["tx_head"]), int(s["rx_tail"])
    shut = bool(int(s["tcp_state"]) & OUT_FIN)
    consumed = now.consumed - int(s["kernel_in"])
    if now.state == TcpState.CLOSE:
        if not shut or socket_error or head >= consumed:
            return Recovered.DEAD
        found_head, found_tail = consumed - 1, tail
    else:
        found_head = consumed - (now.state in _FIN_CAME)
        found_tail = now.accepted - (shut and now.state in _FIN_SENT) - int(s["kernel_out"])
    if not (head <= found_head <= int(s["tx_base"]) + ring and tail <= found_tail <= int(s["rx_ready"])):
        return Recovered.DEAD  # no crash of ours explains it: foreign hands were on the socket
    commit(streams, row, _HEAD_AT, found_head)
    commit(streams, row, _TAIL_AT, found_tail)
    return Recovered.EXACT if (found_head, found_tail) == (head, tail) else Recovered.REPAIRED
