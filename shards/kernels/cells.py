"""What a worker does with a batch of data cells: pass them on as a relay, or open them at an end; and the way out from an end.

Place on a packet's way: replay filter -> onion layer -> (relay: next session) or (end: opened-cell check -> frames);
outwards at an end: onion layers -> session. A relay and the last hop apply `layer`, the client its inverse, both ways.
Source: docs/protocol.md, "Onion layer", "Opened cell", "Replay filter".
"""

from typing import Any, Final

import numpy as np

from nyx.crypto.scratch import SCRATCH_TWEAK
from nyx.kernel import Int, address, inline, kernel
from nyx.link.session import SESSION, SESSION_LIVE
from nyx.onion.cell import cell_accept, cell_sequence
from nyx.onion.filter import FILTER, filter_fetch, filter_seen, filter_value
from nyx.onion.layer import layer, unlayer, write_tweak
from nyx.onion.ratchet import CHAIN, chain_epoch, chain_keys, follow, key_at
from nyx.wire.codes import Drop
from nyx.wire.geometry import (
    LINK_PAYLOAD_SIZE,
    PACKET_CELL,
    PACKET_CIRCUIT,
    PACKET_FRAMES,
    PACKET_LENGTH,
    PACKET_PATH,
    PACKET_SIZE,
    PACKET_TYPE,
)
from nyx.wire.packet import PARITY_BIT, header_parity, read_u32, write_u32
from shards.tables import (
    BACK,
    CELL_NEXT,
    CIRCUIT,
    FORTH,
    ROLE_CLIENT,
    ROLE_LAST,
    ROLE_RELAY,
    WINDOW_WORDS,
    find,
)

_OK: Final = int(Drop.OK)
_CIRCUIT_SIZE: Final = CIRCUIT.itemsize
_UNKNOWN: Final = int(Drop.UNKNOWN_CIRCUIT)
_REPEATED: Final = int(Drop.REPEATED_CELL)
_BAD_CELL: Final = int(Drop.BAD_CELL)
_NO_ROUTE: Final = int(Drop.NO_ROUTE)
_OLD_EPOCH: Final = int(Drop.OLD_EPOCH)

# counts[] of process_cells
COUNT_OUT: Final = 0
COUNT_ENDED: Final = 1
COUNT_DONE: Final = 2
COUNT_MOVED: Final = 3


@inline
def address_cell(pool: Any, at: Int, circuit_id: Int, epoch: Int) -> None:
    """Write what link seal expects of a data cell: header bytes 12-15 and the circuit id."""
    pool[at + PACKET_TYPE] = (np.int64(epoch) & 1) * PARITY_BIT
    pool[at + PACKET_PATH] = 0
    pool[at + PACKET_LENGTH] = LINK_PAYLOAD_SIZE >> 8
    pool[at + PACKET_LENGTH + 1] = LINK_PAYLOAD_SIZE & 0xFF
    write_u32(pool, at + PACKET_CIRCUIT, circuit_id)


@inline
def _layer_key(circuit: Any, hop: Int, direction: Int, epoch: Int) -> Any:
    return key_at(chain_keys(np.int64(circuit["keys"]) - 1 + hop, direction), epoch)


@inline
def _follow(
    pool: Any, at: Int, row: Int, direction: Int, circuits: Any, chains: Any, keys: Any, now: Int, gap: Int, counts: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    """The layer epoch of the cell, with its tweak in the scratch; -1 - code where its keys are gone."""
    circuit, chain = circuits[row], 2 * row + direction
    before = chain_epoch(chains, chain)
    cells = np.int64(circuit["cells_forth"]) if direction == FORTH else np.int64(circuit["cells_back"])
    epoch = follow(
        chains, chain, header_parity(pool[at + PACKET_TYPE]), keys, np.int64(circuit["keys"]) - 1, np.int64(circuit["hops"]),
        direction, np.int64(circuit["suite"]), np.int64(circuit["fresh_at"]), cells, now, gap, scratch,
    )  # fmt: skip
    if epoch < 0:
        return np.int64(-1 - _OLD_EPOCH)
    counts[COUNT_MOVED] = np.int64(counts[COUNT_MOVED]) + np.int64(epoch > before)
    write_tweak(scratch, SCRATCH_TWEAK, direction, 0, 0, epoch)
    return epoch


@inline
def _look_up(
    pool: Any, slots: Any, rows: Any, cells: Any, n: Int, sessions: Any, table_keys: Any, table_values: Any, multiplier: Int,
    circuits: Any, filter_state: Any, filter_table: Any, scratch: Any, found: Any, values: Any,
) -> None:  # fmt: skip
    """Fill found[0:n] with circuit row and direction or -1, values[0:n] with what the replay filter knows a relay's cell by.

    A pass of its own, so that the filter's memory is on its way for the whole batch before the first cell needs it.
    """
    for k in range(n):
        i = np.int64(cells[k])
        at = np.int64(slots[i]) * PACKET_SIZE
        link = np.int64(sessions[np.int64(rows[i])]["link"])
        place = find(table_keys, table_values, multiplier, link << 32 | read_u32(pool, at + PACKET_CIRCUIT))
        found[k] = place
        if place >= 0 and np.int64(circuits[place >> 1]["role"]) == ROLE_RELAY:
            circuit = circuits[place >> 1]
            arrived_as = np.int64(circuit["back_id"]) if place & 1 == FORTH else np.int64(circuit["forth_id"])
            values[k] = filter_value(filter_state, arrived_as, place & 1, pool, at + PACKET_CELL, scratch)
            filter_fetch(filter_state, filter_table, np.int64(values[k]))


@inline
def _pass_on(
    pool: Any, at: Int, row: Int, direction: Int, now: Int, gap: Int, sessions: Any, circuits: Any, chains: Any, keys: Any,
    filter_state: Any, filter_table: Any, value: Int, counts: Any, scratch: Any,
) -> Any:  # fmt: skip
    """A relay's work on one cell. Returns the session row it leaves by, or -1 - code."""
    circuit = circuits[row]
    if filter_seen(filter_state, filter_table, value, now):
        return np.int64(-1 - _REPEATED)
    out = (np.int64(circuit["forth_session"]) if direction == FORTH else np.int64(circuit["back_session"])) - 1
    if out < 0 or np.int64(sessions[out]["state"]) != SESSION_LIVE:
        return np.int64(-1 - _NO_ROUTE)
    epoch = _follow(pool, at, row, direction, circuits, chains, keys, now, gap, counts, scratch)
    if epoch < 0:
        return epoch
    key = _layer_key(circuit, 0, direction, epoch)
    layer(pool, at + PACKET_CELL, keys, key, np.int64(circuit["suite"]), scratch, SCRATCH_TWEAK, scratch)
    address_cell(pool, at, np.int64(circuit["forth_id"]) if direction == FORTH else np.int64(circuit["back_id"]), epoch)
    return out


@inline
def _arrive(
    pool: Any, at: Int, row: Int, direction: Int, now: Int, gap: Int, circuits: Any, chains: Any, commits: Int, keys: Any,
    windows: Any, counts: Any, scratch: Any,
) -> Any:  # fmt: skip
    """An end's work on one cell: layers off, authentication, window. Returns its sequence, or -1 - code."""
    circuit = circuits[row]
    suite = np.int64(circuit["suite"])
    if np.int64(circuit["bad_cells"]) != 0:
        return np.int64(-1 - _BAD_CELL)  # the first failed cell ends the circuit: nothing after it is released
    epoch = _follow(pool, at, row, direction, circuits, chains, keys, now, gap, counts, scratch)
    if epoch < 0:
        return epoch
    if np.int64(circuit["role"]) == ROLE_LAST:
        key = _layer_key(circuit, 0, FORTH, epoch)
        layer(pool, at + PACKET_CELL, keys, key, suite, scratch, SCRATCH_TWEAK, scratch)
    else:
        for hop in range(np.int64(circuit["hops"])):
            key = _layer_key(circuit, hop, BACK, epoch)
            unlayer(pool, at + PACKET_CELL, keys, key, suite, scratch, SCRATCH_TWEAK, scratch)
    sequence = cell_sequence(pool, at + PACKET_CELL)
    if sequence < 0:
        circuit["bad_cells"] = np.int64(circuit["bad_cells"]) + 1
        return np.int64(-1 - _BAD_CELL)
    code = cell_accept(windows, np.int64(row) * WINDOW_WORDS, commits + np.int64(row) * _CIRCUIT_SIZE, sequence)
    return sequence if code == _OK else np.int64(-1 - code)


@kernel(
    "i8", "u1[]", "i8[]", "i8[]", "i8[]", "i8", "i8", "i8", SESSION, "i8[]", "i8[]", "i8", CIRCUIT, CHAIN, "u1[]", "u8[]",
    FILTER, "u4[]", "u1[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]",
)  # fmt: skip
def process_cells(
    pool: Any, slots: Any, rows: Any, cells: Any, n: Int, now: Int, gap: Int, sessions: Any,
    table_keys: Any, table_values: Any, multiplier: Int, circuits: Any, chains: Any, keys: Any, windows: Any,
    filter_state: Any, filter_table: Any, scratch: Any, places: Any, values: Any,
    out_slots: Any, out_rows: Any, out_at: Int, frames: Any, connections: Any, sequences: Any, done: Any, counts: Any, drops: Any,
) -> int:  # fmt: skip
    """Pass on or open every data cell of a batch: cells[0:n] index slots and rows (session rows they arrived on).

    Cells to pass on are appended to out_slots, out_rows from out_at. Cells that ended here give their frame bytes' offset in
    the pool, connection row and sequence. Slots that are finished with, those of ended cells included, are in done: they are
    given back after the frames are read. counts[0:3] = how many of each; counts[3] grows by the layer epochs that began;
    drops[code] counts what went no further. places, values: room for a word of each cell. gap: ms, see `nyx.onion.ratchet`.
    """
    commits = address(circuits) + CELL_NEXT
    n_out, n_ended, n_done = np.int64(out_at), 0, 0
    _look_up(
        pool, slots, rows, cells, n, sessions, table_keys, table_values, multiplier, circuits, filter_state, filter_table,
        scratch, places, values,
    )  # fmt: skip
    for k in range(n):
        slot = np.int64(slots[np.int64(cells[k])])
        at = slot * PACKET_SIZE
        found = np.int64(places[k])
        result = np.int64(-1 - _UNKNOWN)
        if found >= 0:
            row, direction = found >> 1, found & 1
            circuit = circuits[row]
            circuit["in_hand"] = 1
            circuit["last_used"] = now
            if direction == FORTH:
                circuit["cells_forth"] = np.int64(circuit["cells_forth"]) + 1
            else:
                circuit["cells_back"] = np.int64(circuit["cells_back"]) + 1
            if np.int64(circuit["role"]) == ROLE_RELAY:
                result = _pass_on(
                    pool, at, row, direction, now, gap, sessions, circuits, chains, keys, filter_state, filter_table,
                    np.int64(values[k]), counts, scratch,
                )  # fmt: skip
                circuit["in_hand"] = 0
                if result >= 0:
                    out_slots[n_out] = slot
                    out_rows[n_out] = result
                    n_out += 1
                    continue
            else:
                result = _arrive(
                    pool, at, row, direction, now, gap, circuits, chains, commits, keys, windows, counts, scratch
                )  # fmt: skip
                circuit["in_hand"] = 0
                if result >= 0:
                    frames[n_ended] = at + PACKET_FRAMES
                    connections[n_ended] = np.int64(circuit["connection"]) - 1
                    sequences[n_ended] = result
                    n_ended += 1
        if result < 0:
            drops[-1 - result] = np.int64(drops[-1 - result]) + 1
        done[n_done] = slot
        n_done += 1
    counts[COUNT_OUT] = n_out - out_at
    counts[COUNT_ENDED] = n_ended
    counts[COUNT_DONE] = n_done
    return 0


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8", "i8[]", CIRCUIT, CHAIN, "u1[]", "u1[]", "i8", "i8[]")
def wrap_cells(
    pool: Any, slots: Any, connections: Any, n: Int, circuit_of: Any, circuits: Any, chains: Any, keys: Any, scratch: Any,
    now: Int, out_rows: Any,
) -> int:  # fmt: skip
    """Put the onion on n opened cells that start at an end: cell k is in slots[k], of connection connections[k].

    circuit_of[connection] is its circuit's row + 1. out_rows[k] becomes the session row it leaves by, -1 when there is no
    circuit.
    """
    for k in range(n):
        at = np.int64(slots[k]) * PACKET_SIZE
        row = np.int64(circuit_of[np.int64(connections[k])]) - 1
        if row < 0:
            out_rows[k] = -1
            continue
        circuit = circuits[row]
        suite = np.int64(circuit["suite"])
        circuit["in_hand"] = 1
        circuit["last_used"] = now
        if np.int64(circuit["role"]) == ROLE_CLIENT:
            epoch = chain_epoch(chains, 2 * row + FORTH)
            write_tweak(scratch, SCRATCH_TWEAK, FORTH, 0, 0, epoch)
            for hop in range(np.int64(circuit["hops"]) - 1, -1, -1):
                key = _layer_key(circuit, hop, FORTH, epoch)
                unlayer(pool, at + PACKET_CELL, keys, key, suite, scratch, SCRATCH_TWEAK, scratch)
            circuit["cells_forth"] = np.int64(circuit["cells_forth"]) + 1
            address_cell(pool, at, np.int64(circuit["forth_id"]), epoch)
            out_rows[k] = np.int64(circuit["forth_session"]) - 1
        else:
            epoch = chain_epoch(chains, 2 * row + BACK)
            write_tweak(scratch, SCRATCH_TWEAK, BACK, 0, 0, epoch)
            key = _layer_key(circuit, 0, BACK, epoch)
            layer(pool, at + PACKET_CELL, keys, key, suite, scratch, SCRATCH_TWEAK, scratch)
            circuit["cells_back"] = np.int64(circuit["cells_back"]) + 1
            address_cell(pool, at, np.int64(circuit["back_id"]), epoch)
            out_rows[k] = np.int64(circuit["back_session"]) - 1
        circuit["in_hand"] = 0
    return 0
