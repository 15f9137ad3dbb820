"""Established streams: which rows have something to move, and what follows from what the pump kernels met.

Place on a byte's way: between the worker's epoll and the stream rings. Marks are collected during a turn (ready descriptors,
stream events); `pump` then makes one kernel call inward and one outward and handles the few rows that need a decision.

    in    EOF -> finish            the FIN follows what is in the ring
          FULL                     nothing: the WRITABLE event marks the row again; the socket stays unread, so TCP pushes back
    out   BLOCKED                  nothing: EPOLLOUT marks the row again; rx_tail stands still, so the window pushes back
          FINAL -> shutdown        the target sees the application's half-close
    both  over                     the socket is closed; the row waits for CLOSED
    STOPPED                        nothing more is read; what comes is still sent
    ERROR, RESET                   the socket is closed by a reset, the stream likewise

What a socket delivered before it broke is still delivered: the stream is reset only when all of it is acknowledged, or after
DRAIN_TIME. Descriptors are registered edge-triggered, once; there is no epoll_ctl on the data path.
"""

import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.stream import columns as events
from shards.edge import table as edge
from shards.edge.contract import NEVER, SECOND, Epoll, Streams, Words
from shards.edge.reasons import CODE_TARGET_RESET, Reason
from shards.edge.rowmarks import RowMarks
from shards.edge.table import EdgeTable, socket_inode
from shards.kernels import tcp
from shards.marks import fix_marks

MASK: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
DRAIN_TIME: Final = 30 * SECOND  # how long a broken socket's last bytes may take to be acknowledged

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_OUT: Final = select.EPOLLOUT
_DEAD: Final = select.EPOLLHUP | select.EPOLLERR
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_SEND_ON_CLOSE: Final = struct.pack("ii", 0, 0)
_UNSENT: Final = 1 << 18  # bytes that the kernel takes from us beyond what the peer has room for
_WINDOW: Final = 1 << 20  # bytes that a peer may have sent and nobody read: Linux would let one socket grow to 6 MiB or more
_NOTABLE_IN: Final = tcp.EOF | tcp.ERROR
_NOTABLE_OUT: Final = tcp.FINAL | tcp.ERROR


def borrowed(fd: int) -> socket.socket:
    """A socket object around a descriptor; detach() or close() it."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)


def prepare(sock: socket.socket) -> None:
    """Options of every TCP socket here: small writes leave at once, a vanished peer is noticed in the end, and so is our end.

    A socket that the kernel closes because its process was killed resets: a FIN would pass a torn transfer off as a whole one.
    What the kernel holds of a stream that nobody reads is bounded: many such streams would leave no memory to the others.
    """
    sock.setblocking(False)  # noqa: FBT003  # its only argument
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, _WINDOW)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    fix_marks(sock)


def whole_close(sock: socket.socket) -> None:
    """Close what ended well: what is still in the send buffer is delivered."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_ON_CLOSE)
    sock.close()


def reset_close(sock: socket.socket) -> None:
    """Close with a reset: the peer must not take this for the end of the data."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


class Pumps:
    """All streams of a worker that have a socket."""

    def __init__(self, streams: Streams, columns: Columns, ring: int, epoll: Epoll, table: EdgeTable, descriptors: int) -> None:
        self.streams = streams
        self.rows: NDArray[Any] = columns["streams"]
        self.tx: NDArray[np.uint8] = columns["stream_tx"]
        self.rx: NDArray[np.uint8] = columns["stream_rx"]
        self.ring = ring
        self.epoll = epoll
        self.table = table
        self._row_of_fd: Words = np.zeros(descriptors, np.int64)  # row + 1; zero bytes, so that only pages in use are there
        self.bytes_in = 0
        self.bytes_out = 0
        count = len(self.rows)
        self._in = RowMarks(count)
        self._out = RowMarks(count)
        self._work: Words = np.zeros(count, np.int64)
        self._results: Words = np.zeros(count, np.int64)
        self._resetting: dict[int, tuple[int, int]] = {}  # row -> (deadline, code): reset when acknowledged
        self._now = 0

    # ---------------------------------------------------------------- sockets come and go

    def prefill(self, row: int, data: bytes) -> int:
        """Put first bytes of the application into the tx ring; how many fitted."""
        taken = min(len(data), self.ring)
        self.tx[row * self.ring : row * self.ring + taken] = np.frombuffer(data, np.uint8, taken)
        tcp.set_head(self.rows, row, taken)
        return taken

    def attach(self, row: int, fd: int, early: int = 0, reply: int = 0) -> bool:
        """The stream has this registered socket from now on; `reply` bytes are sent at once. False: it is dead."""
        self.table.rows[row]["inode"] = socket_inode(fd)
        if not tcp.attach(self.rows, row, fd, early, reply):
            return False
        self._bind(row, fd)
        self.table.drop(fd)
        return True

    def _bind(self, row: int, fd: int) -> None:
        self._row_of_fd[fd] = row + 1
        self._in.vector[row] = self._out.vector[row] = True

    def restore(self, row: int) -> tcp.Recovered:
        """Take over a row of a dead worker: positions from the kernel's counters, the socket into our epoll."""
        fd = int(self.rows[row]["fd"]) - 1
        with contextlib.suppress(OSError):  # registered already, if the epoll is the same
            self.epoll.register(fd, MASK)
        sock = borrowed(fd)
        try:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        finally:
            sock.detach()
        found = tcp.recover(self.rows, row, self.ring, error)
        if found is not tcp.Recovered.DEAD:
            self._bind(row, fd)
        return found

    def repeat_ends(self, row: int) -> bool:
        """Do again what follows from the row's flags: the dead worker may have stored a flag and done no more, as returned."""
        state = int(self.rows[row]["tcp_state"])
        torn = bool(state & tcp.IN_EOF) and not int(self.rows[row]["tx_fin"]) and not int(self.rows[row]["reset_state"])
        if state & tcp.IN_EOF:
            self.streams.finish(row)
        if state & tcp.OUT_FIN:
            self._shut(row)
        self._close_if_over(row)
        return torn

    def owns(self, row: int) -> bool:
        """Whether the descriptor in the row is still the socket that was put there."""
        fd, inode = int(self.rows[row]["fd"]) - 1, int(self.table.rows[row]["inode"])
        return fd >= 0 and inode != 0 and socket_inode(fd) == inode

    def _close(self, row: int, *, reset: bool) -> None:
        """Close the row's socket; the row goes on without."""
        fd = int(self.rows[row]["fd"]) - 1
        self.table.move(row, edge.CLOSING)
        self._in.vector[row] = self._out.vector[row] = False
        if fd < 0:
            return
        self._row_of_fd[fd] = 0
        with contextlib.suppress(OSError):
            self.epoll.unregister(fd)
        sock = borrowed(fd)
        if reset:
            reset_close(sock)
        else:
            whole_close(sock)
        tcp.detach(self.rows, row)

    def rows_of(self, fds: Words) -> Words:
        """Row of each descriptor, -1 where it is no stream's."""
        rows: Words = self._row_of_fd[fds] - 1
        return rows

    def held(self) -> set[int]:
        """Descriptors of streams."""
        return set(np.flatnonzero(self._row_of_fd).tolist())

    # ---------------------------------------------------------------- marks

    def on_ready(self, rows: Words, masks: Words, now: int) -> None:
        """Sockets of these rows are ready."""
        self._now = now
        self._in.vector[rows[(masks & _IN) != 0]] = True
        self._out.vector[rows[(masks & _OUT) != 0]] = True
        for row in rows[(masks & _DEAD) != 0]:
            self._check_dead(int(row))

    def _check_dead(self, row: int) -> None:
        """The application is gone for good: nobody would read it, if its end of file was read already."""
        state = int(self.rows[row]["tcp_state"])
        if state & (tcp.HELD | tcp.IN_EOF | tcp.OUT_FIN) == tcp.HELD | tcp.IN_EOF:
            self._dead(row)

    def on_event(self, kind: int, row: int, value: int, now: int) -> None:
        """A stream event of a row that is OPEN or CLOSING."""
        if kind in (events.READABLE, events.FINISHED):
            self._out.vector[row] = True
        elif kind == events.WRITABLE:
            self._in.vector[row] = True
        elif kind == events.RESET:
            self._on_reset(row, value, now)
        elif kind == events.STOPPED:
            self._on_stopped(row, now)

    def _on_reset(self, row: int, code: int, now: int) -> None:
        if self.table.state(row) != edge.OPEN:
            return
        self._one(tcp.pump_out, row, self.rx)
        self.abort(row, Reason.TARGET_RESET if code == CODE_TARGET_RESET else Reason.CANCELLED, now)

    def _on_stopped(self, row: int, now: int) -> None:
        """The peer wants no more; what it still sends is delivered."""
        if self.table.state(row) == edge.OPEN and not int(self.rows[row]["tcp_state"]) & tcp.IN_EOF:
            self.table.fail(row, Reason.STOPPED, now)
        tcp.mark(self.rows, row, tcp.IN_EOF)
        self._resetting.pop(row, None)
        self.streams.reset(row, Reason.STOPPED.facts.code)
        self._close_if_over(row)

    # ---------------------------------------------------------------- one turn

    @property
    def pending(self) -> bool:
        """Whether a row has more to move than a turn's budget."""
        return bool(self._in or self._out)

    def pump(self, now: int) -> None:
        """Move what can be moved, once, and settle what ended."""
        self._now = now
        n = self._in.gather(self._work)
        if n:
            self.bytes_in += int(tcp.pump_in(self._work, n, self.rows, self.tx, self.ring, self._results))
            self._after(n, self._in, _NOTABLE_IN, self._on_in)
        n = self._out.gather(self._work)
        if n:
            self.bytes_out += int(tcp.pump_out(self._work, n, self.rows, self.rx, self.ring, self._results))
            self._after(n, self._out, _NOTABLE_OUT, self._on_out)
        if self._resetting:
            self._settle_resets(now)

    def _after(self, n: int, marks: RowMarks, notable: int, decide: Callable[[int, int], None]) -> None:
        """What follows from the results of a kernel call over `n` rows."""
        results = self._results[:n]
        marks.vector[self._work[:n][(results & tcp.MORE) != 0]] = True
        found = np.flatnonzero(results & notable)
        if len(found):
            for row, result in zip(self._work[found].tolist(), results[found].tolist(), strict=True):
                decide(row, result)

    def _one(self, kernel: Any, row: int, memory: NDArray[np.uint8]) -> int:
        """Pump a single row outside the turn's order."""
        one, result = np.array([row], np.int64), np.zeros(1, np.int64)
        kernel(one, 1, self.rows, memory, self.ring, result)
        return int(result[0])

    def _on_in(self, row: int, result: int) -> None:
        if result & tcp.ERROR:
            self._dead(row)
            return
        tcp.mark(self.rows, row, tcp.IN_EOF)
        self.streams.finish(row)
        self._close_if_over(row)

    def _on_out(self, row: int, result: int) -> None:
        if result & tcp.ERROR:
            self._dead(row)
            return
        tcp.mark(self.rows, row, tcp.OUT_FIN)
        self._shut(row)
        self._close_if_over(row)

    def _shut(self, row: int) -> None:
        sock = borrowed(int(self.rows[row]["fd"]) - 1)
        with contextlib.suppress(OSError):  # not connected any more: the read side will say so
            sock.shutdown(socket.SHUT_WR)
        sock.detach()

    def _close_if_over(self, row: int) -> None:
        both = tcp.IN_EOF | tcp.OUT_FIN
        if self.table.state(row) == edge.OPEN and int(self.rows[row]["tcp_state"]) & both == both:
            self._close(row, reset=False)

    # ---------------------------------------------------------------- violent ends

    def _dead(self, row: int) -> None:
        """The socket broke: deliver what it gave before, then reset; ask the peer to stop."""
        if self.table.state(row) != edge.OPEN:
            return
        at_exit = self.table.side(row) == edge.EXIT
        reason = Reason.TARGET_RESET if at_exit else Reason.CANCELLED
        state = int(self.rows[row]["tcp_state"])
        if not state & tcp.IN_EOF:
            while self._one(tcp.pump_in, row, self.tx) & tcp.MORE:
                pass
            self._resetting[row] = (self._now + DRAIN_TIME, reason.facts.code)
        if not state & tcp.OUT_FIN:
            self.streams.stop(row, reason.facts.code)
        self.table.fail(row, reason, self._now)
        self._close(row, reset=True)

    def abort(self, row: int, reason: Reason, now: int) -> None:
        """End an OPEN stream from the network's side: the application sees a reset."""
        if self.table.state(row) != edge.OPEN:
            return
        self.table.fail(row, reason, now)
        self.streams.stop(row, reason.facts.code)
        self.streams.reset(row, reason.facts.code)
        self._close(row, reset=True)

    def drop_socket(self, row: int) -> None:
        """Close the row's socket, if it has one, by a reset; the row is CLOSING."""
        self._close(row, reset=True)

    def forget(self, row: int) -> None:
        """The row is released: nothing of it is left here."""
        self._close(row, reset=True)
        self._resetting.pop(row, None)
        self.table.move(row, edge.FREE)

    def _settle_resets(self, now: int) -> None:
        for row, (deadline, code) in list(self._resetting.items()):
            if now >= deadline or int(self.rows[row]["tx_base"]) >= int(self.rows[row]["tx_head"]):
                del self._resetting[row]
                self.streams.reset(row, code)

    def next_timeout(self) -> int:
        """When `pump` must be called though nothing else happens, in ns."""
        return min(deadline for deadline, _ in self._resetting.values()) if self._resetting else NEVER
