"""Records that kill their worker: one that was in hand in three lives that ended by a fault is closed before the next one begins.

Place on a packet's way: none. A kernel or a room sets "in_hand" of the row that it works on and clears it afterwards, so the rows
whose word is set when a life begins are those the last one died over. Only faults count: a signal that the processor or the
system's own checks raise, or an exception that reached the end of the loop. Who is killed from outside was innocently at
something, however often. A row that cannot be true (an index beyond its table, a ring with more bytes than it has) is closed at
once: what reads it may be anything.

    what was in hand     what is closed
    a session            the link's sessions here, and every circuit that uses them
    a circuit            the circuit
    a connection         its circuit, the connection, its streams
    a stream             its connection and all that belongs to it

A worker that goes on dying all the same, FAULTS_MOST young lives in a row, is lost by something that nobody had in hand: then
everything that it has is dropped, and it begins as after a start of the node.

Everything happens in the primary columns, before any other room reads them: nothing is derived from a poisoned row. A closed
circuit looks like one whose build the last life did not finish: `CircuitRows` wipes it and its neighbours are told. Applications
and targets see a reset.
"""

import ctypes
import signal
import socket
import struct
from typing import Any, Final

import numpy as np

from nyx.columns import Columns
from nyx.link.session import ADDRESS_SIZE, SESSION_FREE, SESSION_LIVE, wipe_session
from nyx.onion.ratchet import HOP_KEYS
from nyx.stats import QUARANTINE_KINDS
from nyx.stream.columns import DONE, IDS, REFUSALS
from nyx.stream.columns import FREE as STREAM_FREE
from nyx.wire.geometry import HOPS_MAX, SESSIONS_PER_LINK
from shards import tables
from shards.context import WorkerContext
from shards.edge.table import socket_inode
from shards.footprint import clear
from shards.say import say

LIMIT: Final = 3  # faults with the same row in hand
FAULTS_MOST: Final = 12  # lives in a row: four records are closed one after the other in as many
FAULT_AGE: Final = 10_000_000_000  # ns; a life of this age ends the row
# What must not be taken twice, and quotas: no row of it leads anywhere.
_LASTING: Final = ("handshakes_seen", "handshakes_proven", "quotas", "filter", "filter_table")
_DESCRIPTOR_MAX: Final = (1 << 31) - 1
_MADV_REMOVE: Final = 9
_EXITED: Final = 256  # node_workers.killed_by: exit codes lie above signals
_FAULTS: Final = frozenset(
    {
        signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
    }
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def is_fault(killed_by: int) -> bool:
    """Whether a life that ended so (`node_workers.killed_by`) ended by its own doing."""
    return killed_by > _EXITED or killed_by in _FAULTS


def broken_rows(columns: Columns) -> list[tuple[str, int]]:
    """Rows in use that cannot be true, by kind."""
    sessions, circuits, connections, streams = (columns[kind] for kind in QUARANTINE_KINDS)
    ring = len(columns["stream_tx"]) // len(streams)

    def outside(values: Any, low: int, high: Any) -> Any:
        return (values < low) | (values > high)

    wrong = {
        "sessions": (sessions["state"] != SESSION_FREE)
        & (outside(sessions["index"], 0, SESSIONS_PER_LINK - 1) | outside(sessions["address_size"], 0, ADDRESS_SIZE)),
        "circuits": outside(circuits["state"], tables.FREE, tables.LIVE)
        | (
            (circuits["state"] != tables.FREE)
            & (outside(circuits["back_session"], 0, len(sessions)) | outside(circuits["forth_session"], 0, len(sessions)))
        )
        | (
            (circuits["state"] == tables.LIVE)
            & (
                outside(circuits["connection"], 0, len(connections))
                | outside(circuits["hops"], 1, HOPS_MAX)
                | outside(circuits["keys"], 1, len(columns["layer_keys"]) // HOP_KEYS - circuits["hops"] + 1)
                | outside(circuits["role"], tables.ROLE_RELAY, tables.ROLE_CLIENT)
            )
        ),
        "connections": outside(connections["state"], 0, DONE),
        "streams": (streams["state"] != STREAM_FREE)
        & (
            outside(streams["connection"], 0, len(connections) - 1)
            | outside(streams["fd"], 0, _DESCRIPTOR_MAX)
            | outside(streams["tx_head"] - streams["tx_base"], 0, ring)
            | outside(streams["rx_ready"] - streams["rx_tail"], 0, ring)
        ),
    }
    return [(kind, int(row)) for kind, mask in wrong.items() for row in np.flatnonzero(mask)]


def quarantine(columns: Columns, *, faulted: bool) -> list[tuple[str, int]]:
    """Clear what the last life had in hand; after a fault count it, and close what has been counted LIMIT times or is broken.

    Returns the rows that were to blame, by kind; what hangs on them is closed as well.
    """
    poisoned = broken_rows(columns)
    for kind in QUARANTINE_KINDS:
        rows = columns[kind]
        for row in np.flatnonzero(rows["in_hand"]).tolist():
            rows[row]["in_hand"] = 0
            if faulted:
                rows[row]["crashes"] += 1
                if int(rows[row]["crashes"]) >= LIMIT:
                    poisoned.append((kind, row))
    for kind, row in poisoned:
        _close(columns, kind, row)
    return poisoned


def drop_everything(columns: Columns) -> None:
    """All rows are free, all keys gone, no page is held. What replayed packets are known by stays."""
    for name, column in columns.items():
        if name in _LASTING:
            continue
        data = column.view(np.uint8)
        if _libc.madvise(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data)), _MADV_REMOVE):
            data[:] = 0  # locked into memory, or no shared memory


def _close(columns: Columns, kind: str, row: int) -> None:
    if kind == "sessions":
        _close_link(columns, int(columns["sessions"][row]["link"]))
    elif kind == "circuits":
        _close_circuit(columns, row)
    elif kind == "connections":
        _close_connection(columns, row)
    else:
        connection = int(columns["streams"][row]["connection"])
        _close_stream(columns, row)
        if 0 <= connection < len(columns["connections"]):
            _close_connection(columns, connection)


def _close_link(columns: Columns, link: int) -> None:
    """All sessions of a link, and the circuits on them."""
    sessions, circuits = columns["sessions"], columns["circuits"]
    for session in np.flatnonzero((sessions["state"] != SESSION_FREE) & (sessions["link"] == link)).tolist():
        uses = (circuits["back_session"] == session + 1) | (circuits["forth_session"] == session + 1)
        for circuit in np.flatnonzero(uses).tolist():
            _close_circuit(columns, circuit)
        wipe_session(columns, session, clear)
        for name in ("session_peers", "session_control"):
            columns[name][session : session + 1].view(np.uint8)[:] = 0


def _close_circuit(columns: Columns, row: int) -> None:
    """The row is left, with those sides that can be true, for `CircuitRows` to wipe as one whose build did not end."""
    circuit, sessions = columns["circuits"][row], columns["sessions"]
    for side in ("back", "forth"):
        session = int(circuit[f"{side}_session"]) - 1
        if not 0 <= session < len(sessions) or int(sessions[session]["state"]) != SESSION_LIVE:
            circuit[f"{side}_session"] = 0
    connection = int(circuit["connection"]) - 1
    if not 0 <= int(circuit["keys"]) <= len(columns["layer_keys"]) // HOP_KEYS:
        circuit["keys"] = 0
    circuit["connection"] = 0
    circuit["state"] = tables.BUILDING
    if 0 <= connection < len(columns["connections"]):
        _close_connection(columns, connection)


def _close_connection(columns: Columns, connection: int) -> None:
    streams = columns["streams"]
    for row in np.flatnonzero((streams["state"] != STREAM_FREE) & (streams["connection"] == connection)).tolist():
        _close_stream(columns, row)
    columns["connections"][connection : connection + 1].view(np.uint8)[:] = 0
    columns["stream_ids"][connection * IDS : (connection + 1) * IDS] = 0
    columns["stream_refusals"][connection * REFUSALS : (connection + 1) * REFUSALS] = 0
    for circuit in np.flatnonzero(columns["circuits"]["connection"] == connection + 1).tolist():
        _close_circuit(columns, circuit)


def _close_stream(columns: Columns, row: int) -> None:
    streams, edge = columns["streams"], columns["edge_streams"]
    _reset_socket(int(streams[row]["fd"]) - 1, int(edge[row]["inode"]))
    half = len(columns["stream_bits"]) // 2
    size = half // len(streams)
    for first in (row * size, half + row * size):
        columns["stream_bits"][first : first + size] = 0
    streams[row : row + 1].view(np.uint8)[:] = 0
    edge[row : row + 1].view(np.uint8)[:] = 0


def _reset_socket(fd: int, inode: int) -> None:
    """Close it so that its other end sees a reset; what is not the socket put there is left alone."""
    if fd < 0 or not inode or socket_inode(fd) != inode:
        return
    with socket.socket(fileno=fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def describe(count: int, kind: int, worker: int) -> str | None:
    """The sentence for `nyxctl status`; `kind` as `node_workers.quarantined_kind` holds it."""
    if not count:
        return None
    if kind > len(QUARANTINE_KINDS):
        return f"worker {worker}: all that it had was dropped because it ended {FAULTS_MOST} times in a row; see the log"
    what = QUARANTINE_KINDS[kind - 1].removesuffix("s") if 0 < kind <= len(QUARANTINE_KINDS) else "record"
    times = "one record was" if count == 1 else f"{count} records were"
    return (
        f"worker {worker}: {times} closed because work on it had ended the worker {LIMIT} times (the last: a {what}); see the log"
    )


def begin_life(context: WorkerContext) -> None:
    """Close what has ended this worker too often, before anything is derived from it, and tell."""
    row = context.shared["node_workers"][context.index]
    faulted = context.life > 0 and is_fault(int(row["killed_by"]))
    row["faults"] += faulted
    if int(row["faults"]) >= FAULTS_MOST:
        drop_everything(context.columns)
        row["faults"] = 0
        _note(row, len(QUARANTINE_KINDS))
        say("error", f"dropped all that this worker had: it ended {FAULTS_MOST} times in a row")
        return
    for kind, _ in quarantine(context.columns, faulted=faulted):
        _note(row, QUARANTINE_KINDS.index(kind))
        say("warning", f"closed one of {kind}: it is broken, or work on it has ended this worker {LIMIT} times")


def _note(row: Any, kind: int) -> None:
    """Count it in the worker's row of "node_workers"."""
    row["quarantined"] += 1
    row["quarantined_kind"] = kind + 1
