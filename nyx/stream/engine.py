"""Streams: the Python around the kernels. Wrappers validate, kernels work; time is an argument and goes forward.

Order of a turn: `receive`, `next_event` until None, the pumps, `transmit` until it writes less than it could, and `on_timeout`
when `next_timeout` has passed. Spurious calls are harmless. A pump only moves tx_head and rx_tail: `transmit` sees that by
itself, `moved` says it at once.

    client:    open_connection -> open_stream -> RESULT -> bytes -> finish ... FINISHED, CLOSED -> release
    last hop:  open_connection -> OPENED -> answer_open -> bytes -> finish ... FINISHED, CLOSED -> release
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.errors import LocalProtocolError
from nyx.kernel import address_of
from nyx.stream import commands
from nyx.stream.columns import (
    ADDRESS,
    CLOSED_LOCALLY,
    DESK_CONNECTIONS,
    DESK_FREE,
    DESK_LINKS,
    DESK_READY,
    DESK_RING,
    DESK_ROWS,
    DESK_RX,
    DESK_STREAMS,
    DESK_TIMER,
    DESK_TOP,
    DESK_TX,
    EVENT,
    FLIGHT,
    FREE,
    IDS,
    LIVE,
    OPENING,
)
from nyx.stream.commands import command, start_stream, take_events
from nyx.stream.lifecycle import SECOND
from nyx.stream.rebuild import rebuild_all
from nyx.stream.receive import receive_cells
from nyx.stream.timers import run_timers
from nyx.stream.transmit import look_at_streams, transmit_cells
from nyx.wire.frames import FORM_IPV4, FORM_IPV6, FORM_NAME, KIND_TCP, address_fits

Entropy = Callable[[int], bytes]
Words = NDArray[np.int64]

CLIENT_IDS: Final = IDS - 1  # ids 2, 4 .. 65534
ID_REST: Final = 30  # seconds before an id is taken again
_EVENTS: Final = 512
_NONE: Final = np.empty(0, np.int64)


class Event(NamedTuple):
    """Something happened: `kind` is one of nyx.stream.columns, `stream` -1 for a connection's own."""

    kind: int
    connection: int
    stream: int
    value: int


class Opened(NamedTuple):
    """What an OPEN asked for."""

    kind: int
    form: int
    address: bytes
    port: int


def encode_host(host: str | bytes) -> tuple[int, bytes]:
    """Address form and bytes of a name, of an address as text, or of an address as 4 or 16 bytes.

    Raises LocalProtocolError for what no OPEN can carry.
    """
    if isinstance(host, str):
        try:
            data = ip_address(host).packed
        except ValueError:
            data = host.encode("ascii", "replace")
            if not address_fits(FORM_NAME, data) or len(data) > 255:
                raise LocalProtocolError(f"not a host name: {host[:80]!r}") from None
            return FORM_NAME, data
    else:
        data = host
    form = {4: FORM_IPV4, 16: FORM_IPV6}.get(len(data))
    if form is None:
        raise LocalProtocolError(f"an address of {len(data)} bytes")
    return form, data


class Streams:
    """All connections and streams of one worker, over its columns (`stream_columns`)."""

    def __init__(self, columns: Columns, ring: int, entropy: Entropy | None = None) -> None:
        self.columns = columns
        self.connections: NDArray[Any] = columns["connections"]
        self.streams: NDArray[Any] = columns["streams"]
        self.tx: NDArray[np.uint8] = columns["stream_tx"]
        self.rx: NDArray[np.uint8] = columns["stream_rx"]
        self.ring = ring
        self._entropy = entropy
        self._desk: Words = columns["stream_desk"]
        self._ids: NDArray[np.int32] = columns["stream_ids"]
        self._addresses: NDArray[np.uint8] = columns["stream_addresses"]
        self._refusals: Words = columns["stream_refusals"]
        self._bits: NDArray[np.uint8] = columns["stream_bits"]
        self._sent: NDArray[Any] = columns["stream_sent"]
        self._lost: Words = columns["stream_lost"]
        self._events: NDArray[Any] = np.zeros(_EVENTS, EVENT)
        self._taken = self._next = 0
        self._now = 0
        self._row = np.zeros(1, np.int64)
        desk = self._desk
        desk[DESK_CONNECTIONS], desk[DESK_STREAMS], desk[DESK_RING] = len(self.connections), len(self.streams), ring
        desk[DESK_TX], desk[DESK_RX] = address_of(self.tx), address_of(self.rx)
        desk[DESK_ROWS], desk[DESK_LINKS] = address_of(self.streams), address_of(self.connections)
        self.rebuild(0)

    def excuse(self, slept: int, now: int) -> None:
        """We stood still for `slept` ns: the peers' silence in that time is ours. What has come since then counts as it came."""
        live = self.connections["state"] == LIVE
        for name in ("last_in", "progress_at"):
            self.connections[name][live] = np.minimum(self.connections[name][live] + slept, now)

    def rebuild(self, now: int) -> int:
        """Make derived state anew; the first call of a worker's life. Returns how many streams live on."""
        self._now = max(self._now, now)
        self._taken = self._next = 0
        return int(rebuild_all(self.connections, self.streams, self._desk, self._ids, self._bits, self._refusals, self._now))

    # ------------------------------------------------------------ connections

    def _command(self, what: int, row: int, a: int = 0, b: int = 0) -> int:
        return int(
            command(self.connections, self.streams, self._desk, self._ids, self._bits, self._refusals, what, row, a, b, self._now)
        )

    def open_connection(self, *, client: bool, now: int, max_cells: int, rtt: int = 0) -> int | None:
        """A row for one end of a new circuit, or None when all are taken.

        `max_cells` bounds what is in flight; `rtt` is a first round trip in ns, 0 if none is known.
        """
        self._now = max(self._now, now)
        free = np.flatnonzero(self.connections["state"] == FREE)
        if not len(free):
            return None
        most = min(max(max_cells, 4), FLIGHT - 1)
        row = int(free[0])
        self._command(commands.BEGIN_CLIENT if client else commands.BEGIN_LAST, row, most, rtt)
        return row

    def close_connection(self, connection: int, code: int = CLOSED_LOCALLY, *, tell: bool = False) -> None:
        """End a connection and its streams; CONNECTION_CLOSED follows if it was live, then the row is free.

        With `tell` the row stays until a CLOSE frame has left and this is called again without it.
        """
        if int(self.connections[connection]["state"]) != FREE:
            self._command(commands.CLOSE_TELL if tell else commands.CLOSE_ROW, connection, code)

    def streams_on(self, connection: int) -> int:
        """How many streams a connection has."""
        return int(self.connections[connection]["streams"])

    def limit(self, connection: int, max_cells: int) -> None:
        """Change how many cells the connection may have in flight."""
        self.connections[connection]["max_cells"] = min(max(max_cells, 4), FLIGHT - 1)

    def ping(self, connection: int, nonce: int) -> None:
        """Ask for a PONG."""
        self._command(commands.SEND_PING, connection, nonce)

    # ------------------------------------------------------------ streams

    def open_stream(self, connection: int, kind: int, host: str | bytes, port: int, now: int) -> int:
        """The client opens a stream; data written at once rides along with its OPEN.

        Raises LocalProtocolError when the connection is not live or has no room, or the target cannot be named.
        """
        self._now = max(self._now, now)
        c = self.connections[connection]
        form, data = encode_host(host)
        if kind != KIND_TCP or not 0 < port < 65536:
            raise LocalProtocolError(f"no stream of kind {kind} to port {port}")
        if int(c["state"]) != LIVE or not int(c["client"]) or int(c["streams"]) >= int(c["max_streams"]):
            raise LocalProtocolError("the connection takes no more streams")
        number = self._next_id(connection)
        row = self._command(commands.OPEN_STREAM, connection, number)
        if row < 0:
            raise LocalProtocolError("all stream rows are taken")
        s = self.streams[row]
        s["kind"], s["form"], s["address_size"] = kind, form, len(data)
        self._addresses[row * ADDRESS : row * ADDRESS + len(data)] = np.frombuffer(data, np.uint8)
        s["port"] = port  # the commit word: `rebuild` undoes a stream without one
        start_stream(self.connections, self.streams, self._desk, row, self._now)
        return row

    def _next_id(self, connection: int) -> int:
        """The id unused for longest, in rising order."""
        c = self.connections[connection]
        second = self._now // SECOND
        for opened in range(int(c["opened"]), int(c["opened"]) + CLIENT_IDS):
            half = 1 + opened % CLIENT_IDS
            entry = int(self._ids[connection * IDS + half])
            if entry == 0 or (entry < 0 and second + entry + 1 >= ID_REST):
                c["opened"] = opened + 1
                return 2 * half
            if entry < 0:
                break  # those that follow ended later
        raise LocalProtocolError("the connection has used up its stream ids for now")

    def opened(self, stream: int) -> Opened:
        """What the OPEN of this row asked for."""
        s = self.streams[stream]
        data = self._addresses[stream * ADDRESS : stream * ADDRESS + int(s["address_size"])].tobytes()
        return Opened(int(s["kind"]), int(s["form"]), data, int(s["port"]))

    def answer_open(self, stream: int, code: int, form: int = FORM_IPV4, address: bytes = bytes(4), port: int = 0) -> None:
        """The last hop's answer, a SOCKS5 reply code; 0 opens. Any other ends the stream at both ends.

        The address is not sent: where the exit's socket is bound is nobody's business.
        """
        del form, address, port
        self._command(commands.ANSWER, stream, code)

    def finish(self, stream: int) -> None:
        """No more bytes than tx_head come: FIN follows them."""
        self._command(commands.FINISH, stream)

    def reset(self, stream: int, code: int) -> None:
        """Give up sending."""
        self._command(commands.GIVE_UP, stream, code)

    def stop(self, stream: int, code: int) -> None:
        """Give up reading."""
        self._command(commands.STOP, stream, code)

    def release(self, stream: int) -> None:
        """The application is done with the row; it is freed when everything is acknowledged. No event of it follows."""
        self._command(commands.RELEASE, stream)

    def consumed(self, stream: int) -> None:
        """rx_tail of one stream moved."""
        self._row[0] = stream
        self.moved(self._row, 1)

    def moved(self, rows: Words, n: int) -> None:
        """tx_head or rx_tail of n streams moved; `transmit` would see it as well, this says it at once."""
        look_at_streams(self.connections, self.streams, self._desk, rows, n)

    # ------------------------------------------------------------ cells

    def receive(self, pool: NDArray[np.uint8], offsets: Words, connections: Words, sequences: Words, n: int, now: int) -> int:
        """Take n opened cells: cell k has its frames at pool[offsets[k]:]. Returns how many were accepted."""
        self._now = now
        return int(
            receive_cells(
                self.connections, self.streams, self._desk, self._ids, self._sent, self._lost, self._bits, self._addresses,
                self._refusals, pool, offsets, connections, sequences, n, now,
            )
        )  # fmt: skip

    def transmit(self, pool: NDArray[np.uint8], slots: Words, n: int, now: int, owners: Words) -> int:
        """Write up to n opened cells into packet slots, the connection of each into `owners`; returns how many."""
        self._now = now
        look_at_streams(self.connections, self.streams, self._desk, _NONE, -1)
        return int(
            transmit_cells(
                self.connections, self.streams, self._desk, self._sent, self._lost, self._bits, self._addresses,
                self._refusals, pool, slots, n, owners, now,
            )
        )  # fmt: skip

    @property
    def pending(self) -> bool:
        """Whether some connection waits to be looked at by `transmit`."""
        return int(self._desk[DESK_READY + 1]) > 0

    # ------------------------------------------------------------ events and time

    def next_event(self) -> Event | None:
        """The next event, or None."""
        if self._next == self._taken:
            self._taken = int(take_events(self.connections, self.streams, self._desk, self._events, _EVENTS))
            self._next = 0
            if not self._taken:
                return None
        e = self._events[self._next]
        self._next += 1
        return Event(int(e["kind"]), int(e["connection"]), int(e["stream"]), int(e["value"]))

    def next_timeout(self, now: int = 0) -> int:
        """When `on_timeout` has something to do, in ns, not before `now`."""
        return max(int(self._desk[DESK_TIMER]), now)

    def on_timeout(self, now: int) -> None:
        """Let time pass: `transmit` may have cells afterwards, and there may be events."""
        self._now = now
        run_timers(self.connections, self.streams, self._desk, self._ids, self._sent, self._lost, self._bits, self._refusals, now)

    # ------------------------------------------------------------ for those who look

    @property
    def free_rows(self) -> int:
        """How many stream rows are free."""
        return int(self._desk[DESK_FREE])

    @property
    def top(self) -> int:
        """All stream rows from this one on are free."""
        return int(self._desk[DESK_TOP])

    def id_rows(self, connection: int) -> NDArray[np.int32]:
        """By half a stream id: row + 1, or minus the second in which it ended - 1, or 0."""
        return self._ids[connection * IDS : (connection + 1) * IDS]

    def records(self, connection: int) -> NDArray[Any]:
        """What the connection's last cells carried."""
        return self._sent[connection * FLIGHT : (connection + 1) * FLIGHT]

    def bits_set(self) -> bool:
        """Whether any byte beyond a gap is remembered."""
        return bool(self._bits.any())

    def opening_since(self, stream: int) -> int | None:
        """When a stream that has no answer yet was opened, in ns."""
        s = self.streams[stream]
        return int(s["opened_at"]) if int(s["state"]) == OPENING else None
