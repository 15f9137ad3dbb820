"""From arrived packets to work: which session each belongs to, and what kind of packet it turned out to be.

Place on a packet's way: session lookup (before unmask and link open), and sorting afterwards. Source: docs/protocol.md, "Packet".
"""

from typing import Any, Final

import numpy as np

from nyx.kernel import Int, kernel
from nyx.link.session import SESSION
from nyx.wire.codes import Drop
from nyx.wire.geometry import PACKET_CIRCUIT, PACKET_SIZE, PACKET_TYPE
from nyx.wire.packet import PARITY_BIT, read_u32, read_u64
from shards.tables import find

_OK: Final = int(Drop.OK)
_BAD_HEADER: Final = int(Drop.BAD_HEADER)
_NOT_READY: Final = int(Drop.NOT_READY)
_CELL: Final = 0x00  # header byte of a data cell without its parity: type 0, kind 0, slot 0
_PARITY: Final = PARITY_BIT


@kernel("i8", "u1[]", "i8[]", "i8", "i8[]", "i8[]", "i8", SESSION, "i8[]")
def find_sessions(pool: Any, slots: Any, n: Int, keys: Any, values: Any, multiplier: Int, sessions: Any, rows: Any) -> Any:
    """Session row of each packet by its CID into rows[0:n], -1 for a stranger's. Returns how many are known."""
    known = 0
    for i in range(n):
        at = np.int64(slots[i]) * PACKET_SIZE
        key = read_u64(pool, at)
        row = find(keys, values, multiplier, key)
        if row >= 0:
            cid = sessions[row]["local_cid"]
            for j in range(8, 12):
                if np.int64(cid[j]) != np.int64(pool[at + j]):
                    row = np.int64(-1)
                    break
        rows[i] = row
        known += row >= 0
    return known


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8[]", "i8", SESSION, "i8[]", "i8[]", "i8[]", "i8[]")
def sort_packets(
    pool: Any, slots: Any, rows: Any, codes: Any, n: Int, sessions: Any,
    cells: Any, control: Any, done: Any, counts: Any,
) -> int:  # fmt: skip
    """Split opened packets into data cells and control packets.

    Indices of data cells go into cells, of link frames, builds and answers into control, slots of dropped packets into done.

    counts[0:3] = how many of each. A stranger's packet (row -1) is in none of them. Codes of packets whose header does not
    fit what they carry become BAD_HEADER or, before the link is ready for cells, NOT_READY.
    """
    n_cells, n_control, n_done = 0, 0, 0
    for i in range(n):
        row = np.int64(rows[i])
        if row < 0:
            continue
        if np.int64(codes[i]) == _OK:
            at = np.int64(slots[i]) * PACKET_SIZE
            kind = np.int64(pool[at + PACKET_TYPE])
            named = read_u32(pool, at + PACKET_CIRCUIT) != 0
            link_frames = kind & 0xC0 == 0x40
            data = kind & ~np.int64(_PARITY) == _CELL
            if link_frames == named or kind & 0x80 != 0 or (kind & _PARITY != 0 and not data):
                codes[i] = _BAD_HEADER
            elif not link_frames and np.int64(sessions[row]["rekey_in"]) == 0:
                codes[i] = _NOT_READY
            elif data:
                cells[n_cells] = i
                n_cells += 1
                continue
            else:
                control[n_control] = i
                n_control += 1
                continue
        done[n_done] = slots[i]
        n_done += 1
    counts[0] = n_cells
    counts[1] = n_control
    counts[2] = n_done
    return 0


@kernel("i8", "i8[]", "i8[]", "i8", "i8[]")
def count_codes(codes: Any, rows: Any, n: Int, counters: Any) -> int:
    """Add one to counters[code] for every packet of a known session that was dropped."""
    for i in range(n):
        code = np.int64(codes[i])
        if np.int64(rows[i]) >= 0 and code != _OK:
            counters[code] = np.int64(counters[code]) + 1
    return 0


@kernel("i8", "i8[]", "i8[]", "i8", "i8[]", "i8[]")
def group_by_session(slots: Any, rows: Any, n: Int, spare_slots: Any, spare_rows: Any) -> Any:
    """Reorder so that packets of one session stand together, each session's in their order. Returns the number of runs.

    One pass per distinct session; a batch has few. A segmented message carries one session, so runs are messages.
    """
    runs = 0
    taken = 0
    for i in range(n):
        row = np.int64(rows[i])
        if row < 0:
            continue
        runs += 1
        for j in range(i, n):
            if np.int64(rows[j]) == row:
                spare_slots[taken] = slots[j]
                spare_rows[taken] = row
                taken += 1
                rows[j] = -1
    for i in range(taken):
        slots[i] = spare_slots[i]
        rows[i] = spare_rows[i]
    return runs
