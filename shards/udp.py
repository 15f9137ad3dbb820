"""Packets in and out of the kernel in bursts: recvmmsg and sendmmsg with segmentation offload, a slot for each packet.

Place on a packet's way: its first and last step here. `receive` scatters what the kernel merged (UDP_GRO, up to 51 packets a
message) into free slots of the pool; `send` gathers runs of packets for one destination (UDP_SEGMENT, up to 48 a message).
A segmented message carries one session: the peer's kernel steers it as one packet by its first CID.

Everything but 1280 bytes is dropped here and counted. Merged packets of another size are dropped whole; after whole packets of
1280 a shorter last one is dropped alone, so that a forged runt which the kernel merged behind a neighbour's burst costs only
itself. Receive slots stay posted between calls: a call pays for the packets it got, not for those it could have got.

Without offload (an older kernel, a device that refuses: EIO, or the flag) the same calls carry one packet a message.
All headers (struct mmsghdr, iovec, cmsghdr of 64-bit Linux) are built inside the kernels, in vectors of words.
Source: Linux udp(7), recvmmsg(2), sendmmsg(2).
"""

import socket
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, address, address_of, foreign, inline, kernel
from nyx.wire.geometry import PACKET_SIZE
from shards.address import ADDRESS_SIZE
from shards.marks import fix_marks
from shards.pool import Pool, give_slot, take_slots

Words = NDArray[np.int64]
Bytes = NDArray[np.uint8]

BUFFER_ASKED: Final = 4 << 20  # bytes of SO_RCVBUF and SO_SNDBUF; Debian's default limit gives 416 KiB, which must do
GRO_SEGMENTS: Final = 51  # 51 * 1280 = 65,280 bytes: the most that fits into a merged message of 64 KiB
GRO_MESSAGES: Final = 8  # messages of one recvmmsg with offload
PLAIN_MESSAGES: Final = 64  # the same without
ORIGINS: Final = 128  # messages, and so sources, of one `receive`
BATCH: Final = 816  # packets of one `receive`: two full calls
GSO_SEGMENTS: Final = 48  # packets of one sent message: 61,440 bytes
SEND_MESSAGES: Final = 64  # messages of one sendmmsg

# Counters of one socket, in `Udp.counters`.
MESSAGES_IN: Final = 0
PACKETS_IN: Final = 1
ODD_SIZE: Final = 2  # datagrams dropped because they were not 1280 bytes
NO_BUFFER: Final = 3  # calls that found the pool too empty to receive; what waits stays in the socket
MESSAGES_OUT: Final = 4
PACKETS_OUT: Final = 5
SEND_FAILED: Final = 6  # packets the kernel refused for good (no route, forbidden): lost, like on the way
SEND_BLOCKED: Final = 7  # calls that ended with a full send buffer
GSO_REFUSED: Final = 8  # segmented messages that had to be sent again packet by packet
COUNTERS: Final = 9

# What one side of a socket is set to, in `Udp.receiving` and `Udp.sending`.
_FD: Final = 0
_SEGMENTS: Final = 1  # packets of one message
_MESSAGES: Final = 2  # messages of one system call
_MISSING: Final = 3  # receiving: posted places without a slot
_STATE_WORDS: Final = 4

# Words of the receiving side: state, then slots posted, their iovecs, message headers, control buffers of 64 bytes.
_POSTED: Final = _STATE_WORDS
_POSTED_MAX: Final = GRO_SEGMENTS * GRO_MESSAGES
_R_IOVECS: Final = _POSTED + _POSTED_MAX
_R_HEADERS: Final = _R_IOVECS + 2 * _POSTED_MAX
_R_CONTROL: Final = _R_HEADERS + 8 * PLAIN_MESSAGES
_RECEIVE_WORDS: Final = _R_CONTROL + 8 * PLAIN_MESSAGES

# Words of the sending side: state, one word of scratch, packets of each message, iovecs, headers, control (3 words each).
_SCRATCH: Final = _STATE_WORDS
_COUNTS: Final = _SCRATCH + 1
_S_IOVECS: Final = _COUNTS + SEND_MESSAGES
_S_HEADERS: Final = _S_IOVECS + 2 * SEND_MESSAGES * GSO_SEGMENTS
_S_CONTROL: Final = _S_HEADERS + 8 * SEND_MESSAGES
_SEND_WORDS: Final = _S_CONTROL + 3 * SEND_MESSAGES

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_GRO_HEADER: Final = _SOL_UDP | _UDP_GRO << 32  # level and type of a cmsghdr as one little-endian word
_GSO_HEADER: Final = _SOL_UDP | _UDP_SEGMENT << 32
_MSG_DONTWAIT: Final = 0x40
_MSG_TRUNC: Final = 0x20
_LOW: Final = 0xFFFFFFFF
_EINTR: Final = 4
_EIO: Final = 5
_EAGAIN: Final = 11
_EINVAL: Final = 22
_EMSGSIZE: Final = 90
_ENOPROTOOPT: Final = 92
_EOPNOTSUPP: Final = 95
_AF_INET: Final = 2

_recvmmsg = foreign(None, "recvmmsg", "i4", "i4", "i8", "u4", "i4", "i8")
_sendmmsg = foreign(None, "sendmmsg", "i4", "i4", "i8", "u4", "i4")
_sendto = foreign(None, "sendto", "i8", "i4", "i8", "i8", "i4", "i8", "u4")
_errno_location = foreign(None, "__errno_location", "i8")
_memcpy = foreign(None, "memcpy", "i8", "i8", "i8", "i8")


# ---------------------------------------------------------------- receiving


@inline
def _post(packets: Any, free: Any, pool_state: Any, r: Any) -> Any:
    """Fill posted places that have no slot; how many messages are complete from the first on."""
    segments, messages = np.int64(r[_SEGMENTS]), np.int64(r[_MESSAGES])
    if r[_MISSING] > 0:
        base = address(packets)
        for place in range(segments * messages):
            if r[_POSTED + place] < 0 and take_slots(free, pool_state, r, _POSTED + place, 1) == 1:
                r[_R_IOVECS + 2 * place] = base + r[_POSTED + place] * PACKET_SIZE
                r[_R_IOVECS + 2 * place + 1] = PACKET_SIZE
                r[_MISSING] -= 1
        if r[_MISSING] > 0:
            for place in range(segments * messages):
                if r[_POSTED + place] < 0:
                    return np.int64(place // segments)
    return messages


@inline
def _prepare(r: Any, sources: Any, used: Any, ready: Any) -> int:
    """Write the headers of `ready` messages; message i leaves its source at sources[(used + i) * 28]."""
    base = address(r)
    segments = np.int64(r[_SEGMENTS])
    for i in range(ready):
        h = _R_HEADERS + 8 * i
        r[h] = address(sources) + (used + i) * ADDRESS_SIZE
        r[h + 1] = ADDRESS_SIZE
        r[h + 2] = base + 8 * (_R_IOVECS + 2 * i * segments)
        r[h + 3] = segments
        r[h + 4] = base + 8 * (_R_CONTROL + 8 * i)
        r[h + 5] = 64
        r[h + 6] = 0
        r[h + 7] = 0
    return 0


@inline
def _whole_packets(r: Any, i: Any, counters: Any) -> Any:
    """How many packets of 1280 bytes message i carries; what is not is counted."""
    h = _R_HEADERS + 8 * i
    size, flags = np.int64(r[h + 7]) & _LOW, np.int64(r[h + 6]) & _LOW
    c = _R_CONTROL + 8 * i
    if r[h + 5] >= 20 and r[c + 1] == _GRO_HEADER:
        segment = np.int64(r[c + 2]) & _LOW
        if segment != PACKET_SIZE:
            counters[ODD_SIZE] += (size + segment - 1) // segment if segment > 0 else 1
            return np.int64(0)
        if size % PACKET_SIZE != 0 or flags & _MSG_TRUNC != 0:
            counters[ODD_SIZE] += 1
        return size // PACKET_SIZE
    if size != PACKET_SIZE or flags & _MSG_TRUNC != 0:
        counters[ODD_SIZE] += 1
        return np.int64(0)
    return np.int64(1)


@inline
def _hand_over(packets: Any, free: Any, pool_state: Any, r: Any, place: Any) -> Any:
    """Take the slot out of a posted place and post another one there."""
    slot = np.int64(r[_POSTED + place])
    if take_slots(free, pool_state, r, _POSTED + place, 1) == 1:
        r[_R_IOVECS + 2 * place] = address(packets) + r[_POSTED + place] * PACKET_SIZE
    else:
        r[_POSTED + place] = -1
        r[_MISSING] += 1
    return slot


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8[]", "u1[]", "i8[]", "i8[]", "i8[]")
def receive_batch(
    packets: Bytes, free: Words, pool_state: Words, r: Words, sources: Bytes, slots: Words, origins: Words, counters: Words
) -> int:
    """Receive what waits, up to the size of `slots`: the k-th packet is in slots[k], its source at sources[origins[k] * 28]."""
    n, used = np.int64(0), np.int64(0)
    segments, messages = np.int64(r[_SEGMENTS]), np.int64(r[_MESSAGES])
    while used + messages <= sources.size // ADDRESS_SIZE and n + messages * segments <= slots.size:
        ready = _post(packets, free, pool_state, r)
        if ready == 0:
            counters[NO_BUFFER] += 1
            break
        _prepare(r, sources, used, ready)
        got = np.int64(_recvmmsg(r[_FD], address(r) + 8 * _R_HEADERS, ready, _MSG_DONTWAIT, 0))
        for i in range(got):
            count = _whole_packets(r, i, counters)
            for j in range(count):
                slots[n] = _hand_over(packets, free, pool_state, r, i * segments + j)
                origins[n] = used + i
                n += 1
        if got > 0:
            used += got
            counters[MESSAGES_IN] += got
        if got < ready:
            break
    counters[PACKETS_IN] += n
    return n  # type: ignore[return-value]


@kernel("i8", "i8[]", "i8[]", "i8[]")
def _withdraw(free: Words, pool_state: Words, r: Words) -> int:
    """Give every posted slot back to the pool."""
    for place in range(np.int64(r[_SEGMENTS]) * np.int64(r[_MESSAGES])):
        if r[_POSTED + place] >= 0:
            give_slot(free, pool_state, np.int64(r[_POSTED + place]))
            r[_POSTED + place] = -1
            r[_MISSING] += 1
    return 0


# ---------------------------------------------------------------- sending


@inline
def _errno(s: Any) -> Any:
    s[_SCRATCH] = 0
    _memcpy(address(s) + 8 * _SCRATCH, _errno_location(), 4)
    return np.int64(s[_SCRATCH])


@inline
def _run(rows: Any, at: Any, n: Any, most: Any) -> Any:
    """Where the run of packets of one destination that begins at `at` ends, at most `most` further on."""
    end = at + 1
    while end < n and end - at < most and rows[end] == rows[at]:
        end += 1
    return np.int64(end)


@inline
def _lay_message(s: Any, m: Any, destination: Any, first: Any, count: Any) -> int:
    """Header m: `count` iovecs from iovec `first` on, to the raw address at `destination`."""
    base = address(s)
    s[_SCRATCH] = 0
    _memcpy(base + 8 * _SCRATCH, destination, 2)
    h = _S_HEADERS + 8 * m
    s[h] = destination
    s[h + 1] = 16 if s[_SCRATCH] == _AF_INET else ADDRESS_SIZE
    s[h + 2] = base + 8 * (_S_IOVECS + 2 * first)
    s[h + 3] = count
    if count > 1:
        c = _S_CONTROL + 3 * m
        s[c] = 18
        s[c + 1] = _GSO_HEADER
        s[c + 2] = PACKET_SIZE
        s[h + 4] = base + 8 * c
        s[h + 5] = 24
    else:
        s[h + 4] = 0
        s[h + 5] = 0
    s[h + 6] = 0
    s[h + 7] = 0
    s[_COUNTS + m] = count
    return 0


@inline
def _refused(s: Any, error: Any, counters: Any) -> Any:
    """Whether the first message failed for being segmented; a device that cannot do it at all is not asked again."""
    if s[_COUNTS] == 1:
        return False
    if error in (_EIO, _ENOPROTOOPT, _EOPNOTSUPP):
        s[_SEGMENTS] = 1
        counters[GSO_REFUSED] += 1
        return True
    if error in (_EINVAL, _EMSGSIZE):
        counters[GSO_REFUSED] += 1
        return True
    return False


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8", "i8", "i8", "i8[]", "i8[]")
def send_batch(
    packets: Bytes, slots: Words, rows: Words, n: Int, destinations: Int, stride: Int, s: Words, counters: Words
) -> int:
    """Send slots[:n]; packet k goes to the raw address at destinations + rows[k] * stride. How many the kernel took.

    Fewer than n: the send buffer is full, the rest stays the caller's. A packet that the kernel refuses for good counts as taken.
    """
    base = address(packets)
    done, single = np.int64(0), np.int64(0)  # packets below `single` go one by one
    while done < n:
        at, m = done, np.int64(0)
        while at < n and m < SEND_MESSAGES:
            end = _run(rows, at, n, 1 if at < single else np.int64(s[_SEGMENTS]))
            for k in range(at, end):
                s[_S_IOVECS + 2 * (k - done)] = base + np.int64(slots[k]) * PACKET_SIZE
                s[_S_IOVECS + 2 * (k - done) + 1] = PACKET_SIZE
            _lay_message(s, m, destinations + np.int64(rows[at]) * stride, at - done, end - at)
            at, m = end, m + 1
        sent = np.int64(_sendmmsg(s[_FD], address(s) + 8 * _S_HEADERS, m, _MSG_DONTWAIT))
        if sent > 0:
            counters[MESSAGES_OUT] += sent
            for i in range(sent):
                counters[PACKETS_OUT] += s[_COUNTS + i]
                done += s[_COUNTS + i]
            continue
        error = _errno(s)
        if error == _EAGAIN:
            counters[SEND_BLOCKED] += 1
            break
        if _refused(s, error, counters):
            single = done + s[_COUNTS]
        elif error != _EINTR:
            counters[SEND_FAILED] += s[_COUNTS]
            done += s[_COUNTS]
    return done  # type: ignore[return-value]


@kernel("i8", "u1[]", "i8", "u1[]", "i8[]", "i8[]")
def _send_one(packet: Bytes, size: int, destination: Bytes, s: Words, counters: Words) -> int:
    length = 16 if np.int64(destination[0]) == _AF_INET else ADDRESS_SIZE
    sent = np.int64(_sendto(s[_FD], address(packet), size, _MSG_DONTWAIT, address(destination), length))
    counters[PACKETS_OUT if sent == size else SEND_FAILED] += 1
    return sent  # type: ignore[return-value]


# ---------------------------------------------------------------- the socket


def _try(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _can_segment(sock: socket.socket) -> bool:
    try:
        sock.getsockopt(_SOL_UDP, _UDP_SEGMENT)
    except OSError:
        return False
    return True


class Udp:
    """One worker's UDP socket, bound already, and the vectors its kernels work in.

    After `receive`: `slots[:n]`, `origins[:n]` (index of the message), `sources[o * 28 : o * 28 + 28]` (raw address).
    `receive_buffer` is what the kernel really gave, in bytes. `counters` is indexed by the constants above.
    """

    def __init__(self, sock: socket.socket, pool: Pool, *, offload: bool = True, buffer: int = BUFFER_ASKED) -> None:
        self.socket = sock
        self.pool = pool
        sock.settimeout(0)
        self.gro = offload and _try(sock, _SOL_UDP, _UDP_GRO, 1)
        gso = offload and _can_segment(sock)
        if not offload:
            _try(sock, _SOL_UDP, _UDP_GRO, 0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            _try(sock, socket.SOL_SOCKET, option, buffer)
        self.receive_buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        fix_marks(sock)
        self.receiving: Words = np.zeros(_RECEIVE_WORDS, np.int64)
        segments, messages = (GRO_SEGMENTS, GRO_MESSAGES) if self.gro else (1, PLAIN_MESSAGES)
        self.receiving[:_STATE_WORDS] = (sock.fileno(), segments, messages, segments * messages)
        self.receiving[_POSTED:_R_IOVECS] = -1
        self.sending: Words = np.zeros(_SEND_WORDS, np.int64)
        self.sending[:_STATE_WORDS] = (sock.fileno(), GSO_SEGMENTS if gso else 1, SEND_MESSAGES, 0)
        self.slots: Words = np.zeros(BATCH, np.int64)
        self.origins: Words = np.zeros(BATCH, np.int64)
        self.sources: Bytes = np.zeros(ORIGINS * ADDRESS_SIZE, np.uint8)
        self.counters: Words = np.zeros(COUNTERS, np.int64)
        self._single: Bytes = np.zeros(PACKET_SIZE, np.uint8)
        self._destination: Bytes = np.zeros(ADDRESS_SIZE, np.uint8)
        self._addresses: tuple[Any, int, int] = (None, 0, 0)  # sessions, where the first one's address lies, bytes to the next

    @property
    def gso(self) -> bool:
        """Whether bursts leave segmented; a device that refuses turns it off."""
        return int(self.sending[_SEGMENTS]) > 1

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()

    def receive(self) -> int:
        """Receive what waits, at most 816 packets; the caller owns their slots. 0 when nothing waits."""
        pool = self.pool
        return int(
            receive_batch(
                pool.packets, pool.free, pool.state, self.receiving, self.sources, self.slots, self.origins, self.counters
            )
        )

    def source(self, k: int) -> bytes:
        """Raw address (28 bytes) of the k-th packet of the last `receive`."""
        at = int(self.origins[k]) * ADDRESS_SIZE
        return self.sources[at : at + ADDRESS_SIZE].tobytes()

    def send(self, slots: Words, rows: Words, n: int, sessions: NDArray[Any]) -> int:
        """Send slots[:n], packet k to sessions[rows[k]]["address"]. How many were taken; the rest stays the caller's.

        Packets of one session that stand together leave as one message: sort by row before sealing.
        """
        return self.send_to(slots, rows, n, *self.addresses_of(sessions))

    def addresses_of(self, sessions: NDArray[Any]) -> tuple[int, int]:
        """Where the first session's raw address lies, and bytes to the next."""
        if self._addresses[0] is not sessions:
            offset = int(sessions.dtype.fields["address"][1])  # type: ignore[index]
            self._addresses = (sessions, address_of(sessions) + offset, sessions.dtype.itemsize)
        return self._addresses[1:]

    def send_to(self, slots: Words, rows: Words, n: int, destinations: int, stride: int) -> int:
        """The same with raw addresses (28 bytes) that lie `stride` bytes apart in memory from `destinations` on."""
        return int(send_batch(self.pool.packets, slots, rows, n, destinations, stride, self.sending, self.counters))

    def send_raw(self, destination: bytes, packet: bytes) -> bool:
        """Send one packet that is in no slot (a handshake) to a raw address; False when the kernel did not take it."""
        self._destination[: len(destination)] = np.frombuffer(destination, np.uint8)
        self._single[: len(packet)] = np.frombuffer(packet, np.uint8)
        return int(_send_one(self._single, len(packet), self._destination, self.sending, self.counters)) == len(packet)

    def withdraw(self) -> None:
        """Give the posted slots back to the pool; the next `receive` posts again."""
        _withdraw(self.pool.free, self.pool.state, self.receiving)


# ---------------------------------------------------------------- binding


def bind_group(host: str, port: int, members: int) -> Sequence[socket.socket]:
    """UDP sockets of one port, one for each worker, which nobody else can join; "::" serves IPv4 too, port 0 finds a free one.

    The first is bound alone, so a port that anybody else holds, with or without SO_REUSEPORT, is an OSError (EADDRINUSE) here,
    and only then opens itself to the others. The caller attaches the steering program.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for _ in range(members):
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            made.append(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if sock is not made[0]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, made[0].getsockname()[1] if sock is not made[0] else port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made
