"""Whole turns of a worker in compiled code, as long as nothing but cells to be passed on comes.

Place on a packet's way: all of it through a relay. `open_batch` takes a received batch from session lookup to cells that wait
for their seal, `seal_queue` from there to sealed packets; `relay_turns` waits, receives, does both and sends, again and again.
It returns to Python for everything else: another descriptor than the socket's, a stranger, a control packet, a cell that ends
here, a full socket, an empty pool, a time at which Python has something to do. Source: docs/architecture.md, "A packet's day".
"""

from typing import Any, Final

import numpy as np

from nyx.kernel import Int, address, foreign, inline, kernel
from nyx.link.seal import open_packets, seal_packets
from nyx.link.session import SESSION
from nyx.onion.filter import FILTER
from nyx.onion.ratchet import CHAIN
from nyx.wire.geometry import CID_SIZE, PACKET_SIZE
from shards.kernels.cells import COUNT_DONE, COUNT_ENDED, COUNT_MOVED, COUNT_OUT, process_cells
from shards.kernels.route import count_codes, find_sessions, group_by_session, sort_packets
from shards.poller import wait_events
from shards.pool import give_slot
from shards.tables import CIRCUIT
from shards.udp import receive_batch, send_batch

# counts[] of open_batch, behind those of process_cells
COUNT_CONTROL: Final = 4
COUNT_STRANGE: Final = 5
COUNTS: Final = 6

# Words of the queue towards the socket.
QUEUED: Final = 0  # packets that wait for their seal
SEALED: Final = 1  # packets that wait for the socket
QUEUE_WORDS: Final = 2

# Words of the turn: what holds, then what came of it.
EPOLL: Final = 0  # descriptors
SOCKET: Final = 1
DEADLINE: Final = 2  # ns, monotonic: when Python has something to do though nothing comes
ATTEND: Final = 3  # ns: when it has something to do once something came
LEAST: Final = 4  # free slots without which nothing is received
READY: Final = 5  # descriptors that are ready, for Python
RECEIVED: Final = 6  # packets of a batch that is opened and not finished with
NOW: Final = 7  # ns, when the last wait ended
RELAYED: Final = 8  # cells passed on
TURNS: Final = 9  # of those that Python saw nothing of
_CLOCK: Final = 10  # struct timespec
MOVES: Final = 12  # layer epochs that began
TURN_WORDS: Final = 13

_EPOLLIN: Final = 1
_MONOTONIC: Final = 1
_SECOND: Final = 1_000_000_000
_clock_gettime = foreign(None, "clock_gettime", "i4", "i4", "i8")


@kernel(
    "i8", "u1[]", "i8[]", "i8[]", "i8[]", "i8", "i8",
    "i8[]", "i8[]", "i8", SESSION, "u8[]", "i8[]", "i8[]",
    "i8[]", "i8[]", "i8", "i8", CIRCUIT, CHAIN, "u1[]", "u8[]", FILTER, "u4[]", "u1[]",
    "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]",
)  # fmt: skip
def open_batch(
    packets: Any, free: Any, pool_state: Any, slots: Any, n: Int, now: Int,
    cids: Any, cid_rows: Any, cid_multiplier: Int, sessions: Any, windows: Any, rows: Any, codes: Any,
    ids: Any, id_rows: Any, id_multiplier: Int, gap: Int, circuits: Any, chains: Any, keys: Any, cell_windows: Any,
    filter_state: Any, filter_table: Any, scratch: Any,
    cells: Any, control: Any, places: Any, values: Any, out_slots: Any, out_rows: Any, queue: Any,
    frames: Any, connections: Any, sequences: Any, done: Any, counts: Any, drops: Any,
) -> int:  # fmt: skip
    """Open slots[:n], pass on what is to be passed on, and say in `counts` what else there is. Dropped slots are given back."""
    for k in range(COUNTS):
        counts[k] = 0
    known = find_sessions(packets, slots, n, cids, cid_rows, cid_multiplier, sessions, rows)
    if known > 0:
        open_packets(packets, slots, rows, n, sessions, windows, codes, now, scratch)
        sort_packets(packets, slots, rows, codes, n, sessions, cells, control, done, counts)
        n_cells, n_control, dropped = np.int64(counts[0]), np.int64(counts[1]), np.int64(counts[2])
        if dropped > 0:
            count_codes(codes, rows, n, drops)
            for k in range(dropped):
                give_slot(free, pool_state, np.int64(done[k]))
        counts[0], counts[1], counts[2] = 0, 0, 0
        if n_cells > 0:
            process_cells(
                packets, slots, rows, cells, n_cells, now, gap, sessions, ids, id_rows, id_multiplier, circuits, chains, keys,
                cell_windows, filter_state, filter_table, scratch, places, values, out_slots, out_rows, np.int64(queue[QUEUED]),
                frames, connections, sequences, done, counts, drops,
            )  # fmt: skip
            queue[QUEUED] += counts[COUNT_OUT]
        counts[COUNT_CONTROL] = n_control
    counts[COUNT_STRANGE] = n - known
    return 0


@inline
def _keep_sealed(packets: Any, free: Any, pool_state: Any, slots: Any, rows: Any, n: Int) -> Any:
    """Packets whose session ended under them were wiped instead of sealed: they are all zero, and never leave."""
    kept = 0
    for k in range(n):
        at = np.int64(slots[k]) * PACKET_SIZE
        empty = True
        for b in range(CID_SIZE):
            if packets[at + b] != 0:
                empty = False
                break
        if empty:
            give_slot(free, pool_state, np.int64(slots[k]))
        else:
            slots[kept] = slots[k]
            rows[kept] = rows[k]
            kept += 1
    return kept


@kernel(
    "i8", "u1[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", SESSION, "i8", "u1[]"
)  # fmt: skip
def seal_queue(
    packets: Any, free: Any, pool_state: Any, slots: Any, rows: Any, spare_slots: Any, spare_rows: Any,
    sealed_slots: Any, sealed_rows: Any, queue: Any, sessions: Any, now: Int, scratch: Any,
) -> Any:  # fmt: skip
    """Group what waits by session, seal it and put it behind what waits for the socket; how many packets wait there then."""
    n = np.int64(queue[QUEUED])
    if n > 1:
        group_by_session(slots, rows, n, spare_slots, spare_rows)
    if n > 0:
        if seal_packets(packets, slots, rows, n, sessions, now, scratch) != 0:
            n = _keep_sealed(packets, free, pool_state, slots, rows, n)
        at = np.int64(queue[SEALED])
        for k in range(n):
            sealed_slots[at + k] = slots[k]
            sealed_rows[at + k] = rows[k]
        queue[SEALED] = at + n
        queue[QUEUED] = 0
    return np.int64(queue[SEALED])


@kernel("i8", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8")
def sent_off(free: Any, pool_state: Any, sealed_slots: Any, sealed_rows: Any, queue: Any, taken: Int) -> Any:
    """The socket took so many of the sealed packets: give their slots back; how many wait still."""
    left = np.int64(queue[SEALED]) - taken
    for k in range(taken):
        give_slot(free, pool_state, np.int64(sealed_slots[k]))
    if taken > 0:
        for k in range(left):
            sealed_slots[k] = sealed_slots[taken + k]
            sealed_rows[k] = sealed_rows[taken + k]
    queue[SEALED] = left
    return left


@inline
def _now(t: Any) -> Any:
    _clock_gettime(_MONOTONIC, address(t) + 8 * _CLOCK)
    return np.int64(t[_CLOCK]) * _SECOND + np.int64(t[_CLOCK + 1])


@kernel(
    "i8", "i8[]", "i8[]", "i4[]", "i8[]", "i8[]",
    "u1[]", "i8[]", "i8[]", "i8[]", "u1[]", "i8[]", "i8[]", "i8[]",
    "i8[]", "i8[]", "i8", SESSION, "u8[]", "i8[]", "i8[]",
    "i8[]", "i8[]", "i8", "i8", CIRCUIT, CHAIN, "u1[]", "u8[]", FILTER, "u4[]", "u1[]",
    "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]",
    "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8", "i8",
)  # fmt: skip
def relay_turns(
    t: Any, wait_state: Any, raw: Any, fds: Any, events: Any,
    packets: Any, free: Any, pool_state: Any, receiving: Any, sources: Any, slots: Any, origins: Any, udp_counters: Any,
    cids: Any, cid_rows: Any, cid_multiplier: Int, sessions: Any, windows: Any, rows: Any, codes: Any,
    ids: Any, id_rows: Any, id_multiplier: Int, gap: Int, circuits: Any, chains: Any, keys: Any, cell_windows: Any,
    filter_state: Any, filter_table: Any, scratch: Any,
    cells: Any, control: Any, places: Any, values: Any, out_slots: Any, out_rows: Any, queue: Any,
    frames: Any, connections: Any, sequences: Any, done: Any, counts: Any, drops: Any,
    spare_slots: Any, spare_rows: Any, sealed_slots: Any, sealed_rows: Any, sending: Any, destinations: Int, stride: Int,
) -> Any:  # fmt: skip
    """Wait, and pass cells on, until Python has something to do. Returns 0, or the error of the wait, negative.

    Then t[READY] descriptors are in `fds` and `events`, none of them served, or t[RECEIVED] packets of a batch are opened and
    `counts` says what they hold, or a time is reached.
    """
    now = _now(t)
    t[READY], t[RECEIVED] = 0, 0
    while True:
        ready = np.int64(wait_events(t[EPOLL], max(np.int64(t[DEADLINE]) - now, np.int64(0)), wait_state, raw, fds, events))
        now = _now(t)
        t[NOW] = now
        if ready <= 0:
            return ready
        if ready > 1 or fds[0] != t[SOCKET] or events[0] != _EPOLLIN or queue[SEALED] > 0 or pool_state[0] < t[LEAST]:
            t[READY] = ready
            return np.int64(0)
        n = np.int64(receive_batch(packets, free, pool_state, receiving, sources, slots, origins, udp_counters))
        if n == 0:
            return np.int64(0)
        open_batch(
            packets, free, pool_state, slots, n, now, cids, cid_rows, cid_multiplier, sessions, windows, rows, codes,
            ids, id_rows, id_multiplier, gap, circuits, chains, keys, cell_windows, filter_state, filter_table, scratch,
            cells, control, places, values, out_slots, out_rows, queue, frames, connections, sequences, done, counts, drops,
        )  # fmt: skip
        t[RELAYED] += counts[COUNT_OUT]
        t[MOVES] += counts[COUNT_MOVED]
        if counts[COUNT_ENDED] > 0 or counts[COUNT_CONTROL] > 0 or counts[COUNT_STRANGE] > 0:
            t[RECEIVED] = n
            return np.int64(0)
        for k in range(np.int64(counts[COUNT_DONE])):
            give_slot(free, pool_state, np.int64(done[k]))
        seal_queue(
            packets, free, pool_state, out_slots, out_rows, spare_slots, spare_rows, sealed_slots, sealed_rows, queue, sessions,
            now, scratch,
        )  # fmt: skip
        if queue[SEALED] > 0:
            taken = np.int64(
                send_batch(
                    packets, sealed_slots, sealed_rows, np.int64(queue[SEALED]), destinations, stride, sending, udp_counters
                )
            )
            if sent_off(free, pool_state, sealed_slots, sealed_rows, queue, taken) > 0:
                return np.int64(0)
        t[TURNS] += 1
        now = _now(t)
        if now >= t[ATTEND] or now >= t[DEADLINE]:
            return np.int64(0)
