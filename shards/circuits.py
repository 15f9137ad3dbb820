"""The circuits of one worker: allocating rows, joining the links on both sides, closing.

Place on a packet's way: none; it writes what the kernels of a batch look up. The columns are the truth; the lookup table and
the free list are derived from them when a worker starts. Source: docs/protocol.md, "Circuit build" (circuit ids).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.crypto.replay import mend_window
from nyx.errors import InternalError
from nyx.onion.ratchet import (
    HOP_KEYS,
    MOVED_BITS,
    MS,
    begin_chain,
    read_circuit_key,
    settle_circuit_key,
    write_circuit_key,
    write_fresh,
)
from nyx.onion.refresh import Fresh
from nyx.wire.geometry import HOPS_MAX, NODE_ID_SIZE
from shards.footprint import clear
from shards.kernels.epochs import drop_fresh, mend_epochs, taken_over
from shards.tables import (
    BACK,
    BUILDING,
    FORTH,
    FREE,
    LIVE,
    PATH_SIZE,
    ROLE_CLIENT,
    WINDOW_WORDS,
    Table,
    circuit_entries,
    circuit_key,
)

Entropy = Callable[[int], bytes]
HopSecrets = tuple[bytes, bytes, bytes]  # of one hop: seeds of its layers, forth and back, and its circuit key

_CHOSEN_BY_RESPONDER: Final = 1 << 31
_ID_TRIES: Final = 64


class Leg(NamedTuple):
    """One side of a circuit: the link's row, the session row on it and the circuit's id there."""

    link: int
    session: int
    circuit_id: int


class CircuitRows:
    """The rows of the circuit columns, and the table that finds them."""

    def __init__(self, columns: Columns, table: Table, entropy: Entropy) -> None:
        self.rows: NDArray[Any] = columns["circuits"]
        self.keys: NDArray[np.uint8] = columns["layer_keys"]
        self.chains: NDArray[Any] = columns["layer_epochs"]
        self._paths: NDArray[np.uint8] = columns["circuit_paths"]
        self._isolations: NDArray[Any] = columns["circuit_isolations"]
        self._windows: NDArray[np.uint64] = columns["cell_windows"]
        self._sessions: NDArray[Any] = columns["sessions"]
        self._table = table
        self._entropy = entropy
        self._reserved: set[int] = set()  # keys of circuit ids that are promised to builds
        self._free = [int(row) for row in np.flatnonzero(self.rows["state"] == FREE)[::-1]]
        self._free_own = self._own_blocks()
        self._settling: NDArray[np.int64] = np.zeros(len(self.rows), np.int64)
        self.repaired = 0
        self.torn: list[Leg] = []  # sides of what the last life built or wiped when it ended: they must hear that it is over
        for row in np.flatnonzero(self.rows["state"] == BUILDING).tolist():  # a build does not outlive its worker
            self.torn += [leg for leg in self.legs(row) if leg and leg.link and leg.circuit_id]
            self._wipe(row)
            self.repaired += 1
        for row in np.flatnonzero(self.rows["state"] == LIVE).tolist():
            self.repaired += mend_window(self._windows, row * WINDOW_WORDS, int(self.rows[row]["cell_next"]))
        self.repaired += mend_epochs(self.rows, self.chains, self.keys)

    def _own_blocks(self) -> list[int]:
        """The first key blocks that own circuits may take and none has."""
        blocks = range(len(self.rows), len(self.keys) // HOP_KEYS, HOPS_MAX)
        return sorted(set(blocks).difference((self.rows["keys"] - 1).tolist()), reverse=True)

    @property
    def live(self) -> int:
        """Rows in use."""
        return len(self.rows) - len(self._free)

    @property
    def full(self) -> bool:
        """Whether every row is in use."""
        return not self._free

    def take(self, role: int, now: int) -> int | None:
        """A row for a circuit that is being built, or None when all are in use."""
        if not self._free:
            return None
        row = self._free.pop()
        circuit = self.rows[row]
        circuit["role"] = role
        circuit["created"] = circuit["last_used"] = now
        circuit["state"] = BUILDING
        return row

    def new_id(self, link: int, initiator: bool) -> int:
        """A circuit id for a leg that we choose: 31 random bits, the top bit says who chose; unused on this link."""
        for _ in range(_ID_TRIES):
            chosen = int.from_bytes(self._entropy(4), "big") & (_CHOSEN_BY_RESPONDER - 1)
            circuit_id = chosen | (0 if initiator else _CHOSEN_BY_RESPONDER)
            key = circuit_key(link, circuit_id)
            if chosen and key not in self._reserved and self._table.find(key) < 0:
                self._reserved.add(key)
                return circuit_id
        raise OverflowError("no free circuit id on this link")

    def find(self, link: int, circuit_id: int) -> tuple[int, int] | None:
        """Row and direction (in which a cell that arrives there travels) of a live circuit."""
        found = self._table.find(circuit_key(link, circuit_id))
        return (found >> 1, found & 1) if found >= 0 else None

    def taken(self, link: int, circuit_id: int) -> bool:
        """Whether this id is in use or promised on this link."""
        key = circuit_key(link, circuit_id)
        return key in self._reserved or self._table.find(key) >= 0

    def write_legs(self, row: int, back: Leg | None, forth: Leg | None) -> None:
        """The sides of a circuit, as far as they are known: if the worker dies while it builds, they hear of it at once."""
        circuit = self.rows[row]
        for side, leg in (("back", back), ("forth", forth)):
            if leg:
                circuit[f"{side}_id"] = leg.circuit_id
                circuit[f"{side}_session"] = leg.session + 1

    def install(
        self,
        row: int,
        suite: int,
        secrets: Sequence[HopSecrets],
        back: Leg | None,
        forth: Leg | None,
        connection: int | None = None,
    ) -> None:
        """Write keys and legs into a row that `take` gave, and let cells pass. The caller's secrets are zeros afterwards."""
        circuit = self.rows[row]
        block = self._free_own.pop() if int(circuit["role"]) == ROLE_CLIENT else row
        circuit["keys"] = block + 1
        circuit["suite"] = suite
        circuit["hops"] = len(secrets)
        for hop, (forth_seed, back_seed, ck) in enumerate(secrets):
            begin_chain(self.keys, block + hop, FORTH, forth_seed, suite)
            begin_chain(self.keys, block + hop, BACK, back_seed, suite)
            write_circuit_key(self.keys, block + hop, ck)
        self.chains["now"][2 * row : 2 * row + 2] = int(circuit["created"]) // MS
        circuit["connection"] = 0 if connection is None else connection + 1
        self.write_legs(row, back, forth)
        circuit["state"] = LIVE
        for leg, direction in ((back, FORTH), (forth, BACK)):
            if leg:
                self._table.put(circuit_key(leg.link, leg.circuit_id), 2 * row + direction)
                self._reserved.discard(circuit_key(leg.link, leg.circuit_id))

    # ------------------------------------------------------------ refresh

    def epochs(self, row: int) -> tuple[int, int]:
        """The layer epochs in force, forth and back."""
        forth, back = (self.chains["now"][2 * row : 2 * row + 2] >> MOVED_BITS).tolist()
        return forth, back

    def moved(self, row: int, direction: int) -> int:
        """When the layer epoch in force began: ns, to the ms."""
        return (int(self.chains["now"][2 * row + direction]) & (1 << MOVED_BITS) - 1) * MS

    def circuit_keys(self, row: int) -> list[bytes]:
        """The circuit key of every hop that this row has keys of."""
        block = int(self.rows[row]["keys"]) - 1
        return [read_circuit_key(self.keys, block + hop) for hop in range(int(self.rows[row]["hops"]))]

    def renew(self, row: int, epoch: int, fresh: Sequence[Fresh]) -> None:
        """Fresh keys of every hop are to take over at this epoch. The caller's are zeros afterwards."""
        circuit = self.rows[row]
        circuit["fresh_at"] = 0
        for hop, one in enumerate(fresh):
            write_fresh(self.keys, int(circuit["keys"]) - 1 + hop, one)
        circuit["fresh_at"] = epoch

    def settle(self) -> int:
        """Where fresh keys are in force both ways, the circuit keys follow, and the old ones are gone; how many circuits."""
        n = taken_over(self.rows, self.chains, self._settling)
        for row in self._settling[:n].tolist():
            circuit = self.rows[row]
            for hop in range(int(circuit["hops"])):
                settle_circuit_key(self.keys, int(circuit["keys"]) - 1 + hop)
            circuit["fresh_at"] = 0
            drop_fresh(self.rows, self.keys, row)
        return int(n)

    def write_path(self, row: int, nodes: Sequence[bytes]) -> None:
        """Keep the node ids of an own circuit's hops, before `install`: a new life of the worker shows them."""
        ids = b"".join(nodes)
        self._paths[row * PATH_SIZE : row * PATH_SIZE + len(ids)] = np.frombuffer(ids, np.uint8)

    def path(self, row: int) -> list[bytes]:
        """Node ids of an own circuit's hops, from the first on."""
        ids = self._paths[row * PATH_SIZE : row * PATH_SIZE + int(self.rows[row]["hops"]) * NODE_ID_SIZE].tobytes()
        return [ids[at : at + NODE_ID_SIZE] for at in range(0, len(ids), NODE_ID_SIZE)]

    def write_isolation(self, row: int, key: bytes) -> None:
        """An own circuit serves this isolation key from now on, in later lives of the worker too."""
        entry = self._isolations[row]
        entry["key"][: len(key)] = np.frombuffer(key, np.uint8)
        entry["size"] = len(key)

    def isolation(self, row: int) -> bytes | None:
        """The isolation key that an own circuit serves; None: it belongs to nobody yet."""
        entry = self._isolations[row]
        return entry["key"][: int(entry["size"])].tobytes() or None

    def legs(self, row: int) -> tuple[Leg | None, Leg | None]:
        """The sides towards the client and towards the last hop."""
        circuit = self.rows[row]
        return self._leg(circuit, "back"), self._leg(circuit, "forth")

    def _leg(self, circuit: Any, side: str) -> Leg | None:
        session = int(circuit[f"{side}_session"]) - 1
        if session < 0:
            return None
        return Leg(int(self._sessions[session]["link"]), session, int(circuit[f"{side}_id"]))

    def forget_id(self, link: int, circuit_id: int) -> None:
        """Give a promised id back that no circuit came to use."""
        self._reserved.discard(circuit_key(link, circuit_id))

    def close(self, row: int) -> None:
        """Forget the circuit: cells stop, keys and window are wiped, the row is free."""
        for leg in self.legs(row):
            if leg:
                self._table.drop(circuit_key(leg.link, leg.circuit_id))
        self._wipe(row)

    def _wipe(self, row: int) -> None:
        circuit = self.rows[row : row + 1]
        circuit["state"] = BUILDING
        if circuit[0]["cell_next"]:
            clear(self._windows[row * WINDOW_WORDS : (row + 1) * WINDOW_WORDS])
        self._wipe_keys(row, int(circuit[0]["keys"]) - 1)
        self._paths[row * PATH_SIZE : (row + 1) * PATH_SIZE] = 0
        self._isolations[row : row + 1].view(np.uint8)[:] = 0
        circuit.view(np.uint8)[8:] = 0
        circuit["state"] = FREE
        self._free.append(row)

    def _wipe_keys(self, row: int, block: int) -> None:
        self.chains[2 * row : 2 * row + 2].view(np.uint8)[:] = 0
        own = block >= len(self.rows)
        if block >= 0:
            self.keys[block * HOP_KEYS : (block + (HOPS_MAX if own else 1)) * HOP_KEYS] = 0
        if own:
            self._free_own.append(block)

    def on_link(self, link: int) -> list[tuple[int, int]]:
        """Live rows with a leg on this link, each with the side: FORTH when it is the side towards the client."""
        found: list[tuple[int, int]] = []
        for row in np.flatnonzero(self.rows["state"] == LIVE):
            back, forth = self.legs(int(row))
            if back and back.link == link:
                found.append((int(row), FORTH))
            elif forth and forth.link == link:
                found.append((int(row), BACK))
        return found

    def idle_since(self, before: int) -> list[int]:
        """Live rows through which no cell has passed since `before` (ns)."""
        return [int(row) for row in np.flatnonzero((self.rows["state"] == LIVE) & (self.rows["last_used"] < before))]

    def check_invariants(self) -> None:
        """Raise when the lookup or the free list contradict the rows, or something of a free row is left."""
        free = self.rows["state"] == FREE
        if sorted(self._free) != np.flatnonzero(free).tolist():
            raise InternalError("the free list of circuits is not the free rows")
        self._table.check_invariants(circuit_entries(self._sessions, self.rows))
        for column in (self.chains.view(np.uint8), self._paths, self._isolations.view(np.uint8), self._windows):
            if column.reshape(len(self.rows), -1)[free].any():
                raise InternalError("a free circuit row holds an epoch, a path, an isolation key or a window")
        self._check_keys()

    def _check_keys(self) -> None:
        """Raise unless every key belongs to a row, and every free block of own circuits is known."""
        if sorted(self._free_own, reverse=True) != self._own_blocks():
            raise InternalError("the free key blocks are not those that no row has")
        used = np.zeros(len(self.keys) // HOP_KEYS, np.bool_)
        for block in (self.rows["keys"][self.rows["keys"] > 0] - 1).tolist():
            used[block : block + (HOPS_MAX if block >= len(self.rows) else 1)] = True
        if self.keys.reshape(len(used), -1)[~used].any():
            raise InternalError("layer keys are left that no circuit has")
