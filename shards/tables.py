"""Circuits as columns, and the two lookups on a packet's way: CID -> session and (link, circuit id) -> circuit.

Place on a packet's way: session lookup before unmasking, circuit lookup after link open. The columns are primary state in
the supervisor's memory; the hash tables are private to the process and rebuilt from the columns when a worker starts.
Source: docs/protocol.md, "Link channel" (circuit ids) and "Circuit build".
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.errors import InternalError
from nyx.kernel import inline, kernel
from nyx.onion.ratchet import CHAIN, HOP_KEYS
from nyx.wire.geometry import HOPS_MAX, NODE_ID_SIZE, WINDOW_BITS

# ---------------------------------------------------------------- circuits

FREE: Final = 0
BUILDING: Final = 1
LIVE: Final = 2

ROLE_RELAY: Final = 1  # passes cells on
ROLE_LAST: Final = 2  # ends the onion for a client: streams leave here
ROLE_CLIENT: Final = 3  # built the circuit

FORTH: Final = 0  # towards the last hop
BACK: Final = 1  # towards the client

# Rows of other tables are stored plus one: zero bytes mean "none".
CIRCUIT: Final = np.dtype(
    [
        ("state", np.int64),  # FREE, BUILDING or LIVE; the commit word of the row
        ("role", np.int64),
        ("suite", np.int64),
        ("hops", np.int64),  # layers the row holds: 1, or at the client the number of hops
        ("keys", np.int64),  # first of as many blocks of "layer_keys", plus one; 0 before there are any
        ("fresh_at", np.int64),  # layer epoch at which the fresh keys of a refresh take over; 0: there are none. A commit word
        ("refresh", np.int64),  # counter of the last refresh
        ("asked", np.int64),  # of the client: the epoch that an unanswered request names, 0 for none
        ("missing", np.int64),  # of the client: cells lost between two hops, as far as refreshes told
        ("refreshed", np.int64),  # of the client: ns, monotonic, when the last refresh was answered
        ("back_session", np.int64),  # row + 1 of the session towards the client
        ("back_id", np.int64),
        ("forth_session", np.int64),  # row + 1 of the session towards the last hop
        ("forth_id", np.int64),
        ("connection", np.int64),  # row + 1 of the stream connection of an end
        ("cell_next", np.int64),  # highest cell sequence received + 1, of an end
        ("created", np.int64),  # ns, monotonic
        ("last_used", np.int64),  # ns, monotonic
        ("cells_forth", np.int64),
        ("cells_back", np.int64),
        ("bad_cells", np.int64),  # cells whose zero bytes were not zero
        ("in_hand", np.int64),  # 1 while a worker is at this row
        ("crashes", np.int64),  # workers that ended by a fault while they were at it
    ],
    align=True,
)

_FIELDS: Any = CIRCUIT.fields
CELL_NEXT: Final = int(_FIELDS["cell_next"][1])  # offset of the commit word of an end's window
PATH_SIZE: Final = HOPS_MAX * NODE_ID_SIZE  # bytes: node ids of an own circuit's hops, from the first on
OWN_MOST: Final = 128  # circuits of a worker's own that can have keys: those have up to seven blocks, others one
WINDOW_WORDS: Final = WINDOW_BITS // 64


ISOLATION: Final = np.dtype([("size", np.int64), ("key", np.uint8, (32,))], align=True)  # size: the commit word, 0 for none


def circuit_columns(circuits: int) -> list[Column]:
    """Columns of `circuits` rows: the rows, paths and isolation of own circuits, layer keys and epochs, sequence windows of ends.

    Layer keys are blocks of a hop each (`nyx.onion.ratchet`): one for each row that is no own circuit, then seven for each own.
    """
    blocks = circuits + HOPS_MAX * min(circuits, OWN_MOST)
    return [
        Column("circuits", CIRCUIT, circuits),
        Column("circuit_paths", np.dtype(np.uint8), circuits * PATH_SIZE),
        Column("circuit_isolations", ISOLATION, circuits),
        Column("layer_keys", np.dtype(np.uint8), blocks * HOP_KEYS),
        Column("layer_epochs", CHAIN, 2 * circuits),  # of row r and direction d: 2 r + d
        Column("cell_windows", np.dtype(np.uint64), circuits * WINDOW_WORDS),
    ]


# ---------------------------------------------------------------- hash tables

_EMPTY: Final = 0
_GRAVE: Final = -1


@inline
def _start(key: int, multiplier: int, mask: int) -> Any:
    low, high = np.int64(key) & 0xFFFFFFFF, (np.int64(key) >> 32) & 0xFFFFFFFF
    mixed = low * (np.int64(multiplier) & 0x3FFFFFFF) + high * ((np.int64(multiplier) >> 30) & 0x3FFFFFFF)
    return np.int64((mixed >> 24) & mask)


@inline
def find(keys: Any, values: Any, multiplier: int, key: int) -> Any:
    """The value stored under `key`, or -1."""
    mask = keys.size - 1
    at = _start(key, multiplier, mask)
    for _ in range(keys.size):
        if np.int64(values[at]) == _EMPTY:
            return np.int64(-1)
        if np.int64(keys[at]) == key and np.int64(values[at]) > 0:
            return np.int64(values[at]) - 1
        at = (at + 1) & mask
    return np.int64(-1)


@kernel("i8", "i8[]", "i8[]", "i8", "i8")
def table_find(keys: Any, values: Any, multiplier: int, key: int) -> Any:
    """The value stored under `key`, or -1."""
    return find(keys, values, multiplier, key)


@kernel("i8", "i8[]", "i8[]", "i8", "i8", "i8")
def table_put(keys: Any, values: Any, multiplier: int, key: int, value: int) -> int:
    """Store a value >= 0 under a key that the table does not hold; 1 when it is full."""
    mask = keys.size - 1
    at = _start(key, multiplier, mask)
    for _ in range(keys.size):
        if np.int64(values[at]) <= _EMPTY:
            keys[at] = key
            values[at] = value + 1
            return 0
        at = (at + 1) & mask
    return 1


@kernel("i8", "i8[]", "i8[]", "i8", "i8")
def table_drop(keys: Any, values: Any, multiplier: int, key: int) -> int:
    """Forget a key: 0, 1 when the table does not hold it, 2 when a grave is left because a later entry may have passed."""
    mask = keys.size - 1
    at = _start(key, multiplier, mask)
    for _ in range(keys.size):
        if np.int64(values[at]) == _EMPTY:
            return 1
        if np.int64(keys[at]) == key and np.int64(values[at]) > 0:
            if np.int64(values[(at + 1) & mask]) == _EMPTY:
                values[at] = _EMPTY
                before = (at - 1) & mask
                while np.int64(values[before]) == _GRAVE:
                    values[before] = _EMPTY
                    before = (before - 1) & mask
                return 0
            values[at] = _GRAVE
            return 2
        at = (at + 1) & mask
    return 1


class Table:
    """An open-addressing map from int64 to int64 >= 0, at most half full, under a secret odd multiplier.

    The multiplier keeps a peer who chooses keys (circuit ids) from aiming them at one place.
    """

    def __init__(self, entries: int, multiplier: int) -> None:
        size = 1 << max(4, (2 * entries - 1).bit_length())
        self.keys: NDArray[np.int64] = np.zeros(size, np.int64)
        self.values: NDArray[np.int64] = np.zeros(size, np.int64)
        self.multiplier = (multiplier | 1 | 1 << 30) & (2**60 - 1)
        self.count = 0
        self.graves = 0

    def find(self, key: int) -> int:
        """The value under `key`, or -1."""
        return int(table_find(self.keys, self.values, self.multiplier, key))

    def put(self, key: int, value: int) -> None:
        """Store `value` under `key`, in place of what stood there. Raises OverflowError when half full."""
        self.drop(key)
        if 2 * (self.count + 1) > self.keys.size:
            raise OverflowError("lookup table is full")
        table_put(self.keys, self.values, self.multiplier, key, value)
        self.count += 1

    def drop(self, key: int) -> None:
        """Forget `key`; nothing happens when it is not there."""
        result = table_drop(self.keys, self.values, self.multiplier, key)
        if result == 1:
            return
        self.count -= 1
        self.graves += result == 2
        if 4 * self.graves > self.keys.size:
            self._sweep()

    def check_invariants(self, expected: Mapping[int, int]) -> None:
        """Raise unless the table holds exactly these entries, each where a look-up finds it, and counts them rightly."""
        held = self.values > 0
        entries = dict(zip(self.keys[held].tolist(), (self.values[held] - 1).tolist(), strict=True))
        if entries != dict(expected) or len(entries) != int(held.sum()):
            raise InternalError(f"a lookup table holds {len(entries)} entries, the rows give {len(expected)}")
        if self.count != len(entries) or self.graves < int((self.values == _GRAVE).sum()):
            raise InternalError(f"a lookup table counts {self.count} entries and {self.graves} graves")
        if any(self.find(key) != value for key, value in entries.items()):
            raise InternalError("a lookup table does not find what it holds")

    def _sweep(self) -> None:
        kept = [(int(k), int(v) - 1) for k, v in zip(self.keys, self.values, strict=True) if v > 0]
        self.values[:] = _EMPTY
        self.graves = 0
        for key, value in kept:
            table_put(self.keys, self.values, self.multiplier, key, value)


def cid_key(cid: bytes) -> int:
    """Lookup key of a CID: its first 8 bytes as a signed big-endian integer."""
    return int.from_bytes(cid[:8], "big", signed=True)


def circuit_key(link: int, circuit_id: int) -> int:
    """Lookup key of a circuit on a link: ids are unique per link, 32 bits."""
    return link << 32 | circuit_id


def session_entries(sessions: NDArray[Any]) -> dict[int, int]:
    """What the lookup by CID must hold: the session rows that can receive."""
    rows = np.flatnonzero(sessions["state"] >= LIVE).tolist()
    return {cid_key(sessions[row]["local_cid"].tobytes()): row for row in rows}


def circuit_entries(sessions: NDArray[Any], circuits: NDArray[Any]) -> dict[int, int]:
    """What the lookup by link and circuit id must hold: 2 x circuit row + direction in which an arriving cell travels."""
    found: dict[int, int] = {}
    for row in np.flatnonzero(circuits["state"] == LIVE).tolist():
        for side, direction in (("back", FORTH), ("forth", BACK)):
            if session := int(circuits[row][f"{side}_session"]):
                link = int(sessions[session - 1]["link"])
                found[circuit_key(link, int(circuits[row][f"{side}_id"]))] = 2 * row + direction
    return found


def _filled(entries: int, multiplier: int, content: Mapping[int, int]) -> Table:
    table = Table(entries, multiplier)
    for key, value in content.items():
        table.put(key, value)
    return table


def session_table(columns: Columns, multiplier: int) -> Table:
    """CID -> session row, made anew from the rows."""
    sessions = columns["sessions"]
    return _filled(len(sessions), multiplier, session_entries(sessions))


def circuit_table(columns: Columns, multiplier: int) -> Table:
    """(link, circuit id) -> 2 x circuit row + direction, made anew from the rows."""
    sessions, circuits = columns["sessions"], columns["circuits"]
    return _filled(2 * len(circuits), multiplier, circuit_entries(sessions, circuits))
