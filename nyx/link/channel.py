"""The reliable control channel of one session: cells of builds and refreshes and link frames, each sent until acknowledged.

Place on a packet's way: between the link seal and whoever builds circuits. Data cells never pass here. Sans-IO: give it what
was opened (`receive`), take what is to be sealed (`poll_transmit` until None), wake it (`poll_timeout`, `handle_timeout`),
drain `next_event` after each. Spurious calls are harmless. Source: docs/protocol.md, "Control packets and LINK_ACK".

Each control packet has a control number, counting from 0 in its session and direction; byte 13 carries its low 8 bits, and a
retransmission keeps it under a new packet number. Number c is sent only once c - 64 is acknowledged, so

- one LINK_ACK (a largest number and 64 bits) covers all that can be open, and
- **c is believed only if c - 64 was seen under a smaller packet number.** Without this, a packet that the network held back
  while 128 others passed would be read as a number 256 too high: a stale build taken for a new one, and the true one lost
  as its duplicate. All copies of c - 256 were sealed before c - 64 was first sent, so they fail the test; all copies of c
  were sealed after every copy of c - 64, so they pass it.

What a new life of the worker needs stands in a record of memory that outlives it (CONTROL): the numbers sent and acknowledged,
and what came under which packet number. The contents of what was under way are lost with the worker: `Channel.resume` sends a
PING under each number that may be missing, so that no number is skipped and the peer's rule above goes on holding.

Delivery is exactly once and not in order. A packet of header byte 0x41 is unnumbered: LINK_ACK, CLOSE and padding alone.

    state    left by                                   sends
    OPEN     close(), a violation, CLOSE, a dead peer  everything
    CLOSING  the CLOSE was taken                       one CLOSE, once
    CLOSED   never                                     nothing
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np

from nyx.columns import Column
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.link.frames import LINK_ACK_SIZE, LINK_FRAMES_SIZE, Close, Frame, LinkAck, Ping, Pong, decode, encode
from nyx.wire.codes import Drop
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE, CIRCUIT_ID_SIZE, LINK_PAYLOAD_SIZE
from nyx.wire.packet import KIND_ANSWER, KIND_BUILD, KIND_REFRESH, TYPE_CELL, TYPE_CONTROL, header_byte

MS: Final = 1_000_000  # nanoseconds
CONTROL_FLIGHT: Final = 64  # numbers open at once: what one LINK_ACK covers
QUEUE_LIMIT: Final = 1024  # packets waiting or open in one session; more is the caller's overload
FIRST_RETRY: Final = 20 * MS  # a worker's restart (19 ms) is not a loss
RETRY_CAP: Final = 250 * MS  # of the intervals; where round trips are long, the first interval
TRIES: Final = 8  # copies before a peer is given up, however much time has passed
SILENCE: Final = 4000 * MS  # ...and so long nothing at all came on this session; at 30 % loss each way, 2 in 100,000
UNACKNOWLEDGED: Final = 30_000 * MS  # a peer that is heard and acknowledges nothing has so long
ACK_DELAY: Final = 2 * MS  # one LINK_ACK for the seven cells of a build; far below the first retry
ACK_AT_ONCE: Final = BUILD_SLOTS  # unacknowledged arrivals that make it due at once
DEFAULT_RTT: Final = 100 * MS  # until the handshake's round trip or a sample says better
SAMPLES_KEPT: Final = 64  # round trips waiting to be counted
HEADER_FRAMES: Final = header_byte(TYPE_CONTROL)
HEADER_UNNUMBERED: Final = header_byte(TYPE_CONTROL, slot=1)
_KINDS: Final = (KIND_BUILD, KIND_ANSWER, KIND_REFRESH)
_CELL_HEADERS: Final = {header_byte(TYPE_CELL, kind, slot): (kind, slot) for kind in _KINDS for slot in range(BUILD_SLOTS)}
_LINK_ID: Final = bytes(CIRCUIT_ID_SIZE)
_BITS: Final = (1 << CONTROL_FLIGHT) - 1


_RECALLED: Final = 256  # numbers whose packet number the record keeps

CONTROL: Final = np.dtype(
    [
        ("sent_next", "i8"),  # stored before the packet is sealed
        ("base", "i8"),
        ("turn", "i8"),  # which of the two copies below counts: the commit word
        ("received_next", "i8", (2,)),
        ("bitmap", "u8", (2,)),
        ("packets", "u4", (_RECALLED,)),  # low 32 bits of the packet number of control number c, at c mod 256
    ],
    align=True,
)


def control_columns(sessions: int) -> list[Column]:
    """A record for each session row."""
    return [Column("session_control", CONTROL, sessions)]


class Outgoing(NamedTuple):
    """One packet to seal: header bytes 12, 13 and 14-15 (always 1228), and 1228 bytes of payload."""

    header_byte: int
    path_byte: int
    length: int
    payload: bytes


class CellReceived(NamedTuple):
    """A build, answer or refresh cell, for the first time."""

    kind: int
    slot: int
    circuit: int
    cell: bytes


class FrameReceived(NamedTuple):
    """A link frame that is not the channel's own business (all but LINK_ACK and PING); Close ends the channel."""

    frame: Frame


class Violation(NamedTuple):
    """The peer broke a rule: CLOSE with this code is on its way; the link ends."""

    code: int
    reason: str


class Failed(NamedTuple):
    """The peer is silent, or acknowledges nothing: the link ends. `circuits` had cells open."""

    circuits: tuple[int, ...]


Event = CellReceived | FrameReceived | Violation | Failed


class ChannelState(Enum):
    """Whether anything more is sent."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True)
class _Item:
    """What travels under one control number: a whole payload (cells) or frames that a LINK_ACK may join."""

    header: int
    body: bytes
    circuit: int
    sent_at: int = -1  # of the last copy
    first_at: int = -1  # of the first copy
    due: int = 0
    tries: int = 0


class _Arrivals:
    """Which control numbers came, and under which packet numbers: the receiving half."""

    __slots__ = ("_memory", "_packet_of", "bitmap", "largest")

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        turn = int(memory["turn"])
        self.largest = int(memory["received_next"][turn]) - 1
        self.bitmap = int(memory["bitmap"][turn])
        recent = range(max(0, self.largest - 2 * CONTROL_FLIGHT + 1), self.largest + 1)
        self._packet_of = {c: int(memory["packets"][c % _RECALLED]) for c in recent if self.seen(c)}

    @property
    def remembered(self) -> int:
        """How many numbers are kept."""
        return len(self._packet_of)

    def rebuild(self, low: int) -> int:
        """The control number nearest to the next one that has these low 8 bits; negative for none."""
        expected = self.largest + 1
        return expected + ((low - expected + 128) & 0xFF) - 128

    def seen(self, control: int) -> bool:
        """Whether it came, or must have come because 64 later ones could be sent."""
        age = self.largest - control
        return age == 0 or age > CONTROL_FLIGHT or (age > 0 and self.bitmap >> (age - 1) & 1 == 1)

    def believable(self, control: int, number: int) -> bool:
        """The test at the head of this module. Packet numbers may be their low 32 bits: a generation is far shorter."""
        if control < CONTROL_FLIGHT:
            return control >= 0
        before = self._packet_of.get(control - CONTROL_FLIGHT)
        return before is not None and 0 < ((number - before) & 0xFFFFFFFF) < 1 << 31

    def mark(self, control: int, number: int) -> None:
        """Remember it; only after `believable` and not `seen`."""
        ahead = control - self.largest
        if ahead > 0:
            known = self.bitmap << 1 | (1 if self.largest >= 0 else 0)
            self.bitmap = known << (ahead - 1) & _BITS
            self.largest = control
        else:
            self.bitmap |= 1 << (-ahead - 1)
        self._packet_of[control] = number
        self._packet_of.pop(control - 4 * CONTROL_FLIGHT, None)
        self._remember(control, number)

    def _remember(self, control: int, number: int) -> None:
        """Two copies and a word that says which counts: a worker killed at any store leaves one of them whole."""
        memory, other = self._memory, 1 - int(self._memory["turn"])
        memory["packets"][control % _RECALLED] = number & 0xFFFFFFFF
        memory["received_next"][other] = self.largest + 1
        memory["bitmap"][other] = self.bitmap
        memory["turn"] = other


class Channel:
    """One session's control channel, both halves. `rtt` is the handshake's round trip in nanoseconds, if known.

    `memory` is a record of CONTROL, all zero for a new channel; without one the channel keeps its own.
    """

    def __init__(self, rtt: int = DEFAULT_RTT, memory: Any = None) -> None:
        self.state = ChannelState.OPEN
        self.srtt = max(1, rtt)
        self.retransmitted = 0  # copies after the first
        self.samples: list[int] = []  # round trips in ns that nobody took yet, the last SAMPLES_KEPT
        self._sampled = False
        self._heard = 0  # when the last opened packet came
        self._memory = np.zeros(1, CONTROL)[0] if memory is None else memory
        self._arrivals = _Arrivals(self._memory)
        self._items: dict[int, _Item] = {}  # control number -> waiting or open, in order
        self._next = 0  # number of the next packet put in the queue
        self._sent_next = 0  # number of the next packet sent for the first time
        self._base = 0  # every number below is acknowledged
        self._lost: deque[int] = deque()  # to be sent again
        self._ack_due: int | None = None
        self._ack_count = 0
        self._close: Close | None = None
        self._events: deque[Event] = deque()

    def __repr__(self) -> str:
        return f"Channel({self.state.value}, open={len(self._items)}, next={self._next}, received={self._arrivals.largest + 1})"

    @classmethod
    def resume(cls, memory: Any, rtt: int = DEFAULT_RTT) -> "Channel":
        """The channel that an earlier life of this worker left in its record."""
        channel = cls(rtt, memory)
        channel._base = int(memory["base"])
        channel._next = channel._sent_next = int(memory["sent_next"])
        filler = encode([Ping(0)])
        for control in range(channel._base, channel._sent_next):
            channel._items[control] = _Item(HEADER_FRAMES, filler, 0, tries=2)  # due at once, and no sample of the round trip
        return channel

    # ------------------------------------------------------------ sending

    def send_cell(self, kind: int, slot: int, circuit: int, cell: bytes) -> int:
        """Queue a cell of a build or refresh. Returns its control number, -1 when the queue is full or the channel has ended."""
        header = header_byte(TYPE_CELL, kind, slot)
        if header not in _CELL_HEADERS or not 0 < circuit < 1 << 32 or len(cell) != CELL_SIZE:
            raise LocalProtocolError(f"no control cell: kind {kind}, slot {slot}, circuit {circuit}, {len(cell)} bytes")
        return self._queue(_Item(header, circuit.to_bytes(CIRCUIT_ID_SIZE, "big") + bytes(cell), circuit))

    def send_frames(self, frames: Sequence[Frame]) -> int:
        """Queue frames as one packet. Returns its control number, or -1 as `send_cell` does."""
        body = encode(frames)
        if not body or any(isinstance(frame, LinkAck | Close) for frame in frames):
            raise LocalProtocolError("acknowledgements and CLOSE are the channel's own; nothing else to send")
        return self._queue(_Item(HEADER_FRAMES, body, 0))

    def _queue(self, item: _Item) -> int:
        if self.state is not ChannelState.OPEN or len(self._items) >= QUEUE_LIMIT:
            return -1
        control = self._next
        self._items[control] = item
        self._next += 1
        return control

    @property
    def waiting(self) -> int:
        """How many control packets are queued or open."""
        return len(self._items)

    def acknowledged(self, control: int) -> bool:
        """Whether the peer has this number."""
        return 0 <= control < self._next and control not in self._items

    def close(self, code: int, reason: bytes = b"") -> None:
        """End the link: one CLOSE, sent once, then nothing."""
        if self.state is ChannelState.OPEN:
            self.state = ChannelState.CLOSING
            self._close = Close(code, reason)
            self._items.clear()
            self._lost.clear()

    def poll_transmit(self, now: int) -> Outgoing | None:
        """The next packet to seal and send, or None: retransmissions, then new ones, then a bare LINK_ACK."""
        if self.state is ChannelState.CLOSED:
            return None
        if self._close is not None:
            frames, self._close, self.state = [self._close], None, ChannelState.CLOSED
            return self._outgoing(HEADER_UNNUMBERED, 0, encode(frames))
        control = self._take()
        if control is not None:
            return self._transmit(control, now)
        if self._ack_due is not None and now >= self._ack_due:
            return self._outgoing(HEADER_UNNUMBERED, 0, self._acknowledgement())
        return None

    def _take(self) -> int | None:
        while self._lost:
            control = self._lost.popleft()
            if control in self._items:
                return control
        if self._sent_next < min(self._next, self._base + CONTROL_FLIGHT):
            self._sent_next += 1
            self._memory["sent_next"] = self._sent_next
            return self._sent_next - 1
        return None

    def _transmit(self, control: int, now: int) -> Outgoing:
        item = self._items[control]
        first = max(FIRST_RETRY, 3 * self.srtt)
        item.due = now + min(first << item.tries, max(RETRY_CAP, first))
        self.retransmitted += item.tries > 0
        item.tries += 1
        item.sent_at = now
        if item.first_at < 0:
            item.first_at = now
        body = item.body
        if item.header == HEADER_FRAMES and self._ack_due is not None and len(body) + LINK_ACK_SIZE <= LINK_FRAMES_SIZE:
            body = self._acknowledgement() + body
        return self._outgoing(item.header, control & 0xFF, body)

    @staticmethod
    def _outgoing(header: int, path: int, body: bytes) -> Outgoing:
        payload = body if header in _CELL_HEADERS else (_LINK_ID + body).ljust(LINK_PAYLOAD_SIZE, b"\0")
        return Outgoing(header, path, LINK_PAYLOAD_SIZE, payload)

    def _acknowledgement(self) -> bytes:
        self._ack_due = None
        self._ack_count = 0
        return encode([LinkAck(self._arrivals.largest, self._arrivals.bitmap)])

    # ------------------------------------------------------------ time

    def poll_timeout(self) -> int | None:
        """When `handle_timeout` or `poll_transmit` has something to do next, in nanoseconds; None: nothing pending."""
        if self.state is not ChannelState.OPEN:
            return None
        lost = set(self._lost)
        dues = [item.due for control, item in self._items.items() if item.tries and control not in lost]
        if self._ack_due is not None:
            dues.append(self._ack_due)
        return min(dues, default=None)

    def handle_timeout(self, now: int) -> None:
        """Mark for retransmission what went unacknowledged too long; end the channel when the peer is given up."""
        if self.state is not ChannelState.OPEN:
            return
        waiting = set(self._lost)
        late = [c for c, item in self._items.items() if item.tries and item.due <= now and c not in waiting]
        if any(self._given_up(self._items[control], now) for control in late):
            circuits = {item.circuit for item in self._items.values()} - {0}
            self._end(Failed(tuple(sorted(circuits))))
            return
        self._lost.extend(late)

    def _given_up(self, item: _Item, now: int) -> bool:
        """Whether the peer is dead (silent for long, many copies sent) or useless. Loss alone is neither."""
        if item.first_at < 0:  # left by an earlier life of this worker, and not sent in this one
            return False
        silent = item.tries >= TRIES and now - max(item.first_at, self._heard) >= SILENCE
        return silent or now - item.first_at >= UNACKNOWLEDGED

    def _end(self, event: Event) -> None:
        self.state = ChannelState.CLOSED
        self._items.clear()
        self._lost.clear()
        self._ack_due = None
        self._events.append(event)

    # ------------------------------------------------------------ receiving

    def receive(self, header: int, path: int, number: int, payload: bytes, now: int) -> Drop:
        """Take one opened packet of type 1, or a build or answer cell: header bytes 12 and 13, packet number, 1228 bytes.

        The low 32 bits of the number are enough. Returns why the packet was dropped, or OK.
        """
        if self.state is not ChannelState.OPEN:
            return Drop.NOT_READY
        self._heard = now
        payload = bytes(payload)
        numbered = header == HEADER_FRAMES or header in _CELL_HEADERS
        on_link = payload[:CIRCUIT_ID_SIZE] == _LINK_ID
        if on_link == (header in _CELL_HEADERS) or not (numbered or (header == HEADER_UNNUMBERED and path == 0)):
            return Drop.BAD_HEADER
        control = self._arrivals.rebuild(path)
        if numbered:
            if not self._arrivals.believable(control, number):
                return Drop.REPLAYED
            self._acknowledge(now)
            if self._arrivals.seen(control):
                self._ack_due = now  # our LINK_ACK was lost, or is late
                return Drop.REPLAYED
        try:
            frames = decode(payload[CIRCUIT_ID_SIZE:]) if on_link else []
            self._check(frames, numbered=numbered)
        except RemoteProtocolError as error:
            self.close(error.code)
            self._events.append(Violation(error.code, str(error)))
            return Drop.BAD_FRAME
        if numbered:
            self._arrivals.mark(control, number)
        if header in _CELL_HEADERS:
            self._accept_cell(header, payload)
        self._accept_frames(frames, now)
        return Drop.OK

    def _acknowledge(self, now: int) -> None:
        self._ack_count += 1
        if self._ack_count >= ACK_AT_ONCE:
            self._ack_due = now
        elif self._ack_due is None:
            self._ack_due = now + ACK_DELAY

    def _check(self, frames: Sequence[Frame], *, numbered: bool) -> None:
        """Everything that can be wrong with decoded frames, before any of them is applied."""
        for frame in frames:
            if isinstance(frame, LinkAck) and frame.largest >= self._sent_next:
                raise RemoteProtocolError("LINK_ACK of a number never sent")
            if isinstance(frame, LinkAck) and frame.bitmap >> frame.largest:
                raise RemoteProtocolError("LINK_ACK of a number below 0")
            if not numbered and not isinstance(frame, LinkAck | Close):
                raise RemoteProtocolError("an unnumbered packet asks for an acknowledgement")

    def _accept_cell(self, header: int, payload: bytes) -> None:
        kind, slot = _CELL_HEADERS[header]
        circuit = int.from_bytes(payload[:CIRCUIT_ID_SIZE], "big")
        self._events.append(CellReceived(kind, slot, circuit, payload[CIRCUIT_ID_SIZE:]))

    def _accept_frames(self, frames: Sequence[Frame], now: int) -> None:
        pongs = [Pong(frame.nonce) for frame in frames if isinstance(frame, Ping)]
        if pongs:
            self.send_frames(pongs)  # one packet for one packet; a full queue drops it
        for frame in frames:
            if isinstance(frame, LinkAck):
                self._on_ack(frame, now)
            elif isinstance(frame, Close):
                self._end(FrameReceived(frame))
                return
            elif not isinstance(frame, Ping):
                self._events.append(FrameReceived(frame))

    def _on_ack(self, ack: LinkAck, now: int) -> None:
        numbers = [ack.largest, *(ack.largest - 1 - i for i in range(CONTROL_FLIGHT) if ack.bitmap >> i & 1)]
        done = [item for item in (self._items.pop(control, None) for control in numbers) if item is not None]
        samples = [now - item.sent_at for item in done if item.tries == 1]
        if samples:
            sample = max(1, min(samples))
            self.samples = [*self.samples[1 - SAMPLES_KEPT :], sample]
            if not self._sampled and self.srtt > DEFAULT_RTT and sample < self.srtt:
                self.srtt = sample  # the handshake's answer came late because the peer was starting
            self.srtt += (sample - self.srtt) // 8
            self._sampled = True
        while self._base < self._sent_next and self._base not in self._items:
            self._base += 1
        self._memory["base"] = self._base

    def next_event(self) -> Event | None:
        """The oldest event not yet taken."""
        return self._events.popleft() if self._events else None

    def check_invariants(self) -> None:
        """Assert what holds between two calls."""
        assert 0 <= self._base <= self._sent_next <= self._next
        assert self._sent_next <= self._base + CONTROL_FLIGHT
        assert len(self._items) <= QUEUE_LIMIT
        assert all(self._base <= control < self._next for control in self._items)
        assert self._base == self._sent_next or self._base in self._items or self.state is not ChannelState.OPEN
        assert all((item.tries > 0) == (control < self._sent_next) for control, item in self._items.items())
        assert all((item.tries > 0) >= (item.first_at >= 0) for item in self._items.values())
        assert 0 <= self._arrivals.bitmap <= _BITS
        assert self._arrivals.remembered <= 4 * CONTROL_FLIGHT
        assert self._arrivals.largest >= 0 or self._arrivals.bitmap == 0
