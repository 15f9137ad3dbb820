r"""What the edge must remember beyond its worker's death: a row per stream, and the sockets that have no stream yet.

    FREE --(OPEN sent or arrived)--> OPENING --(socket attached, OPEN answered)--> OPEN --(socket closed)--> CLOSING --> FREE
                                        \------------------(failed, cancelled)-----------------------------/

Everything is derived from these columns when a worker starts (`Edge.recover`): an OPEN row is served on, an OPENING one is
refused, a socket in `edge_fds` that no row names is closed. A socket is known by its number and its inode together: the number
alone may belong to another socket by then. Targets are recorded at the client only; an exit forgets them.
"""

import os
import stat
from collections import deque
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.errors import InternalError
from shards.edge.reasons import Reason

FREE: Final = 0
OPENING: Final = 1
OPEN: Final = 2
CLOSING: Final = 3

CLIENT: Final = 1
EXIT: Final = 2
GUEST: Final = 3  # a client's stream whose application holds a slot of shared memory in place of a socket

GUEST_LIVE: Final = 1
GUEST_GONE: Final = 2  # its socket is closed; streams that it closed properly still end

EDGE_STREAM: Final = np.dtype(
    [
        ("state", np.int64),  # commit word of the row
        ("side", np.int64),  # CLIENT, EXIT or GUEST
        ("inode", np.int64),  # of the socket in STREAM.fd
        ("guest", np.int64),  # row + 1 in "edge_guests"
        ("slot", np.int64),  # of that guest's memory
        ("generation", np.int64),  # of that slot
        ("opened", np.int64),  # ns, monotonic
        ("reason", np.int64),  # Reason, once something went wrong
        ("port", np.int64),
        ("length", np.int64),  # of the target's text
        ("target", np.uint8, (264,)),  # host as text, at the client
    ],
    align=True,
)
EDGE_FD: Final = np.dtype([("fd", np.int64), ("inode", np.int64)], align=True)  # fd + 1; 0 = free

EDGE_GUEST: Final = np.dtype(
    [
        ("state", np.int64),  # commit word: set after the others, cleared before the descriptors are closed
        ("sock", np.int64),  # descriptors, each + 1
        ("memory", np.int64),
        ("wake", np.int64),  # the eventfd by which the application wakes us
        ("bell", np.int64),  # the pipe by which we wake it
        ("sock_inode", np.int64),
        ("memory_inode", np.int64),
        ("slots", np.int64),
        ("ring", np.int64),
    ],
    align=True,
)

FAILURES_KEPT: Final = 64  # recent failures shown by `nyxctl streams`


def edge_columns(streams: int, half_open: int = 1024, guests: int = 16) -> list[Column]:
    """Columns of the edge beside `streams` stream rows, with room for so many sockets without a stream and SDK connections."""
    return [
        Column("edge_streams", EDGE_STREAM, streams),
        Column("edge_fds", EDGE_FD, half_open),
        Column("edge_guests", EDGE_GUEST, guests),
    ]


def socket_inode(fd: int) -> int:
    """Inode of a socket, 0 when the descriptor is closed or something else, or the number none at all."""
    try:
        status = os.fstat(fd)
    except (OSError, OverflowError):
        return 0
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0


def memory_inode(fd: int) -> int:
    """Inode of a memfd, 0 when the descriptor is closed or something else, or the number none at all."""
    try:
        status = os.fstat(fd)
    except (OSError, OverflowError):
        return 0
    return status.st_ino if stat.S_ISREG(status.st_mode) else 0


def guest_fds(guest: Any) -> set[int]:
    """Descriptors of an SDK connection's row, if they are still what was put there; empty when it is over.

    An eventfd and a pipe cannot be told from others. They are closed only after the row is cleared, so they are right where
    the memory is: a table of descriptors is kept whole or not at all.
    """
    if int(guest["state"]) == FREE or memory_inode(int(guest["memory"]) - 1) != int(guest["memory_inode"]):
        return set()
    sock = int(guest["sock"]) - 1
    if int(guest["state"]) == GUEST_LIVE and socket_inode(sock) != int(guest["sock_inode"]):
        return set()
    return {int(guest[name]) - 1 for name in ("sock", "memory", "wake", "bell") if int(guest[name])}


def live_sockets(columns: Columns) -> set[int]:
    """Descriptors that rows name and that are still what was put there: what a new life must not sweep away."""
    rows = np.flatnonzero(columns["edge_streams"]["state"] != FREE)
    found = {int(columns["streams"][r]["fd"]) - 1: int(columns["edge_streams"][r]["inode"]) for r in rows}
    sockets = {fd for fd, inode in found.items() if fd >= 0 and inode and socket_inode(fd) == inode}
    return sockets.union(*(guest_fds(guest) for guest in columns["edge_guests"]))


class Failure(NamedTuple):
    """A request or stream that failed, as `nyxctl streams` shows it."""

    side: int
    target: str
    reason: Reason
    at: int  # ns, monotonic


class EdgeTable:
    """The columns of this room, with the lists derived from them."""

    def __init__(self, columns: Columns) -> None:
        self.rows: NDArray[Any] = columns["edge_streams"]
        self.fds: NDArray[Any] = columns["edge_fds"]
        self.guests: NDArray[Any] = columns["edge_guests"]
        self.failures: deque[Failure] = deque(maxlen=FAILURES_KEPT)
        self._slot_of_fd: dict[int, int] = {}
        self._free_slots = [int(i) for i in np.flatnonzero(self.fds["fd"] == 0)[::-1]]

    # ---------------------------------------------------------------- sockets without a stream

    @property
    def room(self) -> int:
        """How many more sockets without a stream may be held."""
        return len(self._free_slots)

    def hold(self, fd: int) -> None:
        """Record a new socket. There must be room."""
        slot = self._free_slots.pop()
        self.fds[slot]["inode"] = socket_inode(fd)
        self.fds[slot]["fd"] = fd + 1
        self._slot_of_fd[fd] = slot

    def drop(self, fd: int) -> None:
        """The socket is closed, or a stream's now. Harmless for an unknown one."""
        slot = self._slot_of_fd.pop(fd, None)
        if slot is not None:
            self.fds[slot]["fd"] = 0
            self._free_slots.append(slot)

    def held(self) -> set[int]:
        """Descriptors without a stream."""
        return set(self._slot_of_fd)

    def take_orphans(self) -> list[int]:
        """Sockets that a dead worker held without a stream, to be closed now; the column is empty afterwards."""
        found = self.fds[self.fds["fd"] != 0]
        orphans = [int(f["fd"]) - 1 for f in found if int(f["inode"]) and socket_inode(int(f["fd"]) - 1) == int(f["inode"])]
        self.fds["fd"] = 0
        self._slot_of_fd.clear()
        self._free_slots = list(range(len(self.fds) - 1, -1, -1))
        return orphans

    # ---------------------------------------------------------------- streams

    def begin(
        self, row: int, side: int, now: int, host: str = "", port: int = 0, seat: tuple[int, int, int] = (-1, 0, 0)
    ) -> None:
        """A stream is being opened; `seat` is a guest's row, slot and generation."""
        text = host.encode("ascii")[:264]
        entry = self.rows[row]
        entry["side"], entry["opened"], entry["reason"], entry["inode"] = side, now, 0, 0
        entry["port"], entry["length"] = port, len(text)
        entry["guest"], entry["slot"], entry["generation"] = seat[0] + 1, seat[1], seat[2]
        entry["target"][: len(text)] = np.frombuffer(text, np.uint8)
        entry["state"] = OPENING

    def state(self, row: int) -> int:
        """State of a row."""
        return int(self.rows[row]["state"])

    def side(self, row: int) -> int:
        """Side of a row."""
        return int(self.rows[row]["side"])

    def move(self, row: int, state: int) -> None:
        """Go to another state of the diagram above."""
        self.rows[row]["state"] = state

    def target(self, row: int) -> str:
        """host:port, or nothing at an exit."""
        entry = self.rows[row]
        length = int(entry["length"])
        return f"{bytes(entry['target'][:length]).decode('ascii')}:{int(entry['port'])}" if length else ""

    def fail(self, row: int, reason: Reason, now: int) -> None:
        """Keep why the stream failed; the first reason stays."""
        if int(self.rows[row]["reason"]) == Reason.NONE:
            self.rows[row]["reason"] = reason
            self.failures.append(Failure(self.side(row), self.target(row), reason, now))

    def live(self) -> list[int]:
        """Rows that are not free."""
        return [int(r) for r in np.flatnonzero(self.rows["state"] != FREE)]

    def count(self, state: int) -> int:
        """How many rows are in a state."""
        return int(np.count_nonzero(self.rows["state"] == state))

    def check_invariants(self) -> None:
        """Raise when the lists contradict the columns."""
        taken = np.flatnonzero(self.fds["fd"] != 0).tolist()
        if sorted(self._free_slots) != np.flatnonzero(self.fds["fd"] == 0).tolist() or sorted(self._slot_of_fd.values()) != taken:
            raise InternalError("the sockets held without a stream are not those of the column")
        if any(int(self.fds[slot]["fd"]) != fd + 1 for fd, slot in self._slot_of_fd.items()):
            raise InternalError("a socket without a stream stands in another's place")
