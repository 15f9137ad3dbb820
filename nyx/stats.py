"""The numbers a node keeps about itself: counters, latencies, and who runs, in memory that the control process reads.

Roles: each worker writes its own row of "statistics" and of "latencies"; the supervisor and the keepers of the workers write
"node" and "node_workers"; the control process maps all of it read-only. Words are aligned 8-byte stores: a reader sees each of
them whole, though not all of one moment. Counters only grow, over restarts of a worker too.
Nothing here names a peer, an address, a circuit or a stream.
"""

from bisect import bisect_left
from collections.abc import Sequence
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
    BYTES_IN = 2  # application bytes that came in from sockets here and went into streams
    BYTES_OUT = 3  # application bytes that came out of streams here, to sockets
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
    COOKIES_SENT = 35  # to strangers who had to prove their address
    COOKIES_TAKEN = 36  # from relays under load, each made into a new initiation
    BUILDS_WORKED = 37  # as the client, begun again with the proof of work that a relay asked
    STREAMS_EVICTED = 38  # ended because the node's memory was used up
    CIRCUITS_EVICTED = 39  # of others, for the same reason
    FILTER_EARLY = 40  # turns of the replay filter because a generation was full before its time
    LAYER_MOVES = 41  # layer epochs begun, of each circuit and direction
    REFRESHES_DONE = 42  # of own circuits, answered by all their hops
    REFRESHES_PASSED = 43  # of others' circuits, answered and passed on
    CELLS_MISSING = 44  # of own circuits: sent on by one hop and not arrived at the next, as refreshes tell


UNITS: Final[dict[str, str]] = {
    "busy": "ns",
    "bytes_in": "bytes",
    "bytes_out": "bytes",
}  # of counters that are not numbers of things

# Why a request or a stream was refused or failed before it stood: the names of shards/edge/reasons.py, in its order.
REFUSALS: Final[tuple[str, ...]] = (
    "bad_request", "not_connect", "address_form", "bad_name", "no_method", "slow_client", "no_circuit", "circuit_lost", "busy",
    "policy", "network_unreachable", "host_unreachable", "not_resolved", "connection_refused", "timeout", "exit_failed",
    "target_reset", "cancelled", "restarted", "shutdown", "stopped", "too_large", "no_descriptor", "memory",
)  # fmt: skip

COUNTERS: Final[tuple[str, ...]] = (
    *(counter.name.lower() for counter in Counter),
    *(f"dropped_{label}" for label in DROP_LABELS[1:]),
    *(f"refused_{label}" for label in REFUSALS),
)
_DROP_BASE: Final = len(Counter) - 1
_REFUSAL_BASE: Final = len(Counter) + len(DROP_LABELS) - 1
ROW: Final = -(-len(COUNTERS) // 8) * 8  # words of a worker's row: whole cache lines


def drop_counter(code: int) -> int:
    """Index of the counter of this `Drop`; OK has none and must not be asked."""
    return _DROP_BASE + code


def refusal_counters(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """The part of a worker's row that counts refusals, in the order of REFUSALS: a view."""
    return row[_REFUSAL_BASE : _REFUSAL_BASE + len(REFUSALS)]


def statistics_columns(workers: int) -> list[Column]:
    """Counters and latencies of all workers."""
    word = np.dtype(np.int64)
    return [Column("statistics", word, workers * ROW), Column("latencies", word, workers * LATENCY_ROW)]


def statistics_row(statistics: NDArray[np.int64], worker: int) -> NDArray[np.int64]:
    """One worker's counters, in the order of COUNTERS: a view."""
    return statistics[worker * ROW : worker * ROW + len(COUNTERS)]


def add_drops(row: NDArray[np.int64], drops: NDArray[np.int64]) -> None:
    """Add private totals, indexed by `Drop`, to the row and zero them."""
    row[len(Counter) : len(Counter) + len(drops) - 1] += drops[1:]
    drops[:] = 0


# ---------------------------------------------------------------- latencies


class Latency(IntEnum):
    """What is timed; the value is the index of its histogram in a worker's row. Only appended."""

    STREAM_OPEN = 0  # from an application's complete request to the reply that the stream stands
    LINK_ROUND_TRIP = 1  # from a control packet's first copy to its acknowledgement by the neighbour


LATENCIES: Final[tuple[str, ...]] = tuple(latency.name.lower() for latency in Latency)
# Upper bounds of the buckets in ns, 10 us to 80 s: ten in each decade, no step above a third.
BOUNDS: Final[tuple[int, ...]] = tuple(
    step * 10**decade for decade in range(3, 10) for step in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
)
_BUCKETS: Final = len(BOUNDS) + 1  # the last holds what is above all bounds
_HISTOGRAM: Final = _BUCKETS + 1  # and the sum, in ns
LATENCY_ROW: Final = -(-len(Latency) * _HISTOGRAM // 8) * 8


class Histogram:
    """One histogram: a view of a worker's row, or private memory that is added to it now and then."""

    __slots__ = ("words",)

    def __init__(self, words: NDArray[np.int64] | None = None) -> None:
        self.words: NDArray[np.int64] = np.zeros(_HISTOGRAM, np.int64) if words is None else words

    def observe(self, nanoseconds: int) -> None:
        """Count one time; below zero counts as zero."""
        self.words[bisect_left(BOUNDS, nanoseconds)] += 1
        self.words[_BUCKETS] += max(nanoseconds, 0)

    def drain_into(self, other: "Histogram") -> None:
        """Add everything to another one and start from nothing."""
        other.words += self.words
        self.words[:] = 0

    @property
    def counts(self) -> list[int]:
        """How many times fell into each bucket, the one above all bounds last."""
        return [int(word) for word in self.words[:_BUCKETS]]

    @property
    def total(self) -> int:
        """Sum of all times, in ns."""
        return int(self.words[_BUCKETS])


def latency_histogram(latencies: NDArray[np.int64], worker: int, which: Latency) -> Histogram:
    """One histogram of one worker, in the shared memory."""
    at = worker * LATENCY_ROW + which * _HISTOGRAM
    return Histogram(latencies[at : at + _HISTOGRAM])


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time, in ns, that this share of the observations did not exceed, linear within its bucket; None without any.

    What lies above all bounds is told as the last bound.
    """
    wanted, below = share * sum(counts), 0
    if not wanted:
        return None
    for bucket, count in enumerate(counts[: len(BOUNDS)]):
        if count and below + count >= wanted:
            low = BOUNDS[bucket - 1] if bucket else 0
            return low + (BOUNDS[bucket] - low) * (wanted - below) / count
        below += count
    return float(BOUNDS[-1])


# ---------------------------------------------------------------- who runs

NODE: Final[np.dtype[Any]] = np.dtype(
    [
        ("boot_epoch", np.int64),  # drawn by the supervisor at its start, positive
        ("started", np.int64),  # Unix seconds
        ("workers", np.int64),
        ("supervisor", np.int64),  # process ids; 0: not running
        ("control", np.int64),
        ("control_restarts", np.int64),
        ("upgrades", np.int64),  # times the supervisor has replaced its code
        ("upgraded", np.int64),  # Unix seconds of the last time
        ("pulse", np.int64),  # monotonic ns of the supervisor's last look at the others
        ("clock", np.int64),  # ns by which the wall clock was ahead of the time since boot when the supervisor started
        ("sealed", np.int64),  # nyx.sealing.Seal of the supervisor
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
        ("faults", np.int64),  # lives in a row that ended by a fault, each before it was a few seconds old
        ("quarantined", np.int64),  # records that were closed because each had ended the worker several times
        ("quarantined_kind", np.int64),  # 1 + index of the last one's kind in QUARANTINE_KINDS; one more: everything
        ("load", np.int64),  # streams at this end and circuits of others: what an end of the worker would end
        ("still", np.int64),  # seconds for which its loop has not turned, as the supervisor counts; 0: it turns
        ("stopped", np.int64),  # STOPPED_*: which of its processes a signal stopped
        ("unborn", np.int64),  # errno with which the system refused its last birth; 0: none
        ("sealed", np.int64),  # nyx.sealing.Seal of the worker, and of its keeper
        ("keeper_sealed", np.int64),
    ],
    align=True,
)


STOPPED_WORKER: Final = 1  # bits of node_workers.stopped
STOPPED_KEEPER: Final = 2
QUARANTINE_KINDS: Final = ("sessions", "circuits", "connections", "streams")  # columns whose rows are closed so


def node_columns(workers: int) -> list[Column]:
    """The node's one row, and a row for each worker."""
    return [Column("node", NODE, 1), Column("node_workers", NODE_WORKER, workers)]
