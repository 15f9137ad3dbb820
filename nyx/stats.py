"""The numbers a node keeps about itself: counters of each worker, and who runs, in memory that the control process reads.

Roles: each worker writes its own row of "statistics"; the supervisor and the keepers of the workers write "node" and
"node_workers"; the control process maps both read-only. Words are aligned 8-byte stores: a reader sees each of them whole, though
not all of one moment. Counters only grow, over restarts of a worker too.
Nothing here names a peer, an address, a circuit or a stream.
"""

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import ALIGN, Column
from nyx.wire.codes import DROP_LABELS

DATA_OFFSET: Final = ALIGN  # bytes before the first column in the memory: its header page


class Counter(IntEnum):
    """What a worker counts, besides drops; the value is the index in its row. Only appended."""

    PACKETS_IN = 0  # of 1280 bytes, before any check
    PACKETS_OUT = 1  # given to the kernel
    BYTES_IN = 2  # application bytes that came out of streams here
    BYTES_OUT = 3  # application bytes that went into streams here
    CELLS_RELAYED = 4
    CELLS_DELIVERED = 5  # opened at their end, window and zeros right
    CELLS_SENT = 6  # made here
    HANDSHAKES_STARTED = 7
    HANDSHAKES_ANSWERED = 8
    LINKS_OPENED = 9
    LINKS_CLOSED = 10
    BUILDS_STARTED = 11  # as the client
    BUILDS_READY = 12
    BUILDS_FAILED = 13
    BUILDS_PASSED = 14  # as a hop
    CIRCUITS_CLOSED = 15
    STREAMS_OPENED = 16
    STREAMS_REFUSED = 17
    STREAMS_CLOSED = 18
    PROXY_CLIENTS = 19  # connections accepted by the proxy
    PROXY_REFUSED = 20  # of those: no room, a bad greeting, or none in time
    HANDED_OVER = 21  # packets given to another worker over its ring
    TAKEN_OVER = 22
    RING_FULL = 23  # packets dropped because that ring was full
    CONTROL_RETRANSMITTED = 24
    SEND_FAILED = 25  # packets that the kernel refused for good
    SEND_BLOCKED = 26  # times the send buffer was full
    GSO_REFUSED = 27
    ODD_SIZE = 28  # datagrams of another size
    POOL_EMPTY = 29  # times there was no slot to receive into
    TURNS = 30  # of the worker's loop
    BUSY = 31  # ns of CPU of the loop
    REPAIRS = 32  # things that a new life of a worker found torn and mended (docs/architecture.md, "What a new life mends")
    REPAIRED_POSITIONS = 33  # of those: sockets whose positions differed from what the kernel had counted
    CONTROL_REPEATED = 34  # control packets that came again: the peer resent what had arrived


COUNTERS: Final[tuple[str, ...]] = (
    *(counter.name.lower() for counter in Counter),
    *(f"dropped_{label}" for label in DROP_LABELS[1:]),
)
_DROP_BASE: Final = len(Counter) - 1
ROW: Final = -(-len(COUNTERS) // 8) * 8  # words of a worker's row: whole cache lines


def drop_counter(code: int) -> int:
    """Index of the counter of this `Drop`; OK has none and must not be asked."""
    return _DROP_BASE + code


def statistics_columns(workers: int) -> list[Column]:
    """Counters of all workers."""
    return [Column("statistics", np.dtype(np.int64), workers * ROW)]


def statistics_row(statistics: NDArray[np.int64], worker: int) -> NDArray[np.int64]:
    """One worker's counters, in the order of COUNTERS: a view."""
    return statistics[worker * ROW : worker * ROW + len(COUNTERS)]


def add_drops(row: NDArray[np.int64], drops: NDArray[np.int64]) -> None:
    """Add private totals, indexed by `Drop`, to the row and zero them."""
    row[len(Counter) : len(Counter) + len(drops) - 1] += drops[1:]
    drops[:] = 0


# ---------------------------------------------------------------- who runs

NODE: Final[np.dtype[Any]] = np.dtype(
    [
        ("boot_epoch", np.int64),  # drawn by the supervisor at its start, positive
        ("started", np.int64),  # Unix seconds
        ("workers", np.int64),
        ("supervisor", np.int64),  # process ids; 0: not running
        ("control", np.int64),
        ("control_restarts", np.int64),
    ],
    align=True,
)

NODE_WORKER: Final[np.dtype[Any]] = np.dtype(
    [
        ("pid", np.int64),  # 0: not running
        ("keeper", np.int64),  # the process that holds its descriptors and starts it again
        ("restarts", np.int64),
        ("ready", np.int64),  # pid of the life that reported its loop running: ready when equal to pid
        ("killed_by", np.int64),  # signal that ended the last life, or 256 + its exit code; 0: none yet
    ],
    align=True,
)


def node_columns(workers: int) -> list[Column]:
    """The node's one row, and a row for each worker."""
    return [Column("node", NODE, 1), Column("node_workers", NODE_WORKER, workers)]
