"""The layer ratchet over the circuits of a worker: moving those that begin a new epoch, and erasing what is behind.

Place on a packet's way: beside it, a few times a second. Which key a cell gets is decided where it is processed
(`shards/kernels/cells.py`). Source: docs/protocol.md, "Layer epochs"; `nyx/onion/ratchet.py`.
"""

from typing import Any

import numpy as np

from nyx.kernel import Int, kernel
from nyx.onion.ratchet import CHAIN, advance, chain_epoch, forget_before, forget_fresh, mend_chain
from shards.tables import CIRCUIT, FORTH, LIVE, ROLE_CLIENT


@kernel("i8", CIRCUIT, CHAIN, "u1[]", "i8[]", "i8", "i8", "u1[]")
def move_circuits(circuits: Any, chains: Any, keys: Any, rows: Any, n: Int, now: Int, scratch: Any) -> int:
    """Begin the next epoch of the direction that these ends originate: forward at the client, backward at the last hop."""
    for k in range(n):
        row = np.int64(rows[k])
        circuit = circuits[row]
        circuit["in_hand"] = 1
        client = np.int64(circuit["role"]) == ROLE_CLIENT
        direction = np.int64(FORTH) if client else np.int64(1 - FORTH)
        cells = np.int64(circuit["cells_forth"]) if client else np.int64(circuit["cells_back"])
        block, hops, suite = np.int64(circuit["keys"]) - 1, np.int64(circuit["hops"]), np.int64(circuit["suite"])
        fresh_at = np.int64(circuit["fresh_at"])
        advance(chains, 2 * row + direction, keys, block, hops, direction, suite, fresh_at, cells, now, scratch)
        circuit["in_hand"] = 0
    return 0


@kernel("i8", CIRCUIT, CHAIN, "u1[]", "i8", "i8")
def forget_epochs(circuits: Any, chains: Any, keys: Any, now: Int, gap: Int) -> Any:
    """Erase the epochs before the current ones whose time is over; returns of how many directions. `gap` in ms."""
    found = np.int64(0)
    for row in range(circuits.size):
        if np.int64(circuits[row]["state"]) == LIVE:
            block, hops = np.int64(circuits[row]["keys"]) - 1, np.int64(circuits[row]["hops"])
            for direction in range(2):
                found += forget_before(chains, 2 * row + direction, keys, block, hops, direction, now, gap)
    return found


@kernel("i8", CIRCUIT, CHAIN, "u1[]")
def mend_epochs(circuits: Any, chains: Any, keys: Any) -> Any:
    """Erase what a death left of moves and refreshes that were under way; returns of how many."""
    found = np.int64(0)
    for row in range(circuits.size):
        if np.int64(circuits[row]["state"]) == LIVE:
            block, hops = np.int64(circuits[row]["keys"]) - 1, np.int64(circuits[row]["hops"])
            for direction in range(2):
                found += mend_chain(chains, 2 * row + direction, keys, block, hops, direction)
            if np.int64(circuits[row]["fresh_at"]) == 0:
                found += forget_fresh(keys, block, hops)
    return found


@kernel("i8", CIRCUIT, "u1[]", "i8")
def drop_fresh(circuits: Any, keys: Any, row: Int) -> Any:
    """Erase what a refresh of this circuit gave; 1 if there was anything."""
    return np.int64(forget_fresh(keys, np.int64(circuits[row]["keys"]) - 1, np.int64(circuits[row]["hops"])))


@kernel("i8", CIRCUIT, CHAIN, "i8[]")
def taken_over(circuits: Any, chains: Any, rows: Any) -> Any:
    """The circuits whose fresh keys are in force both ways, into rows; returns how many."""
    n = np.int64(0)
    for row in range(circuits.size):
        at = np.int64(circuits[row]["fresh_at"])
        slower = min(chain_epoch(chains, 2 * row), chain_epoch(chains, 2 * row + 1))
        if np.int64(circuits[row]["state"]) == LIVE and 0 < at <= slower:
            rows[n] = row
            n += 1
    return n
