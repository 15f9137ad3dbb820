"""Packets of strangers that are no initiation to us, sorted out before Python sees one of them.

Place on a packet's way: after session lookup, for packets whose CID names no session. A flood of junk ends here, at the cost of
three keyed hashes a packet. Source: docs/protocol.md, "Responder: order of checks", step 2.
"""

from typing import Any, Final

import numpy as np

from nyx.crypto.sodium import blake2b, memcmp
from nyx.kernel import Int, address, kernel
from nyx.wire.codes import Drop
from nyx.wire.geometry import INIT_MAC1, MAC_SIZE, PACKET_SIZE
from nyx.wire.packet import read_u64
from shards.steer import worker_at
from shards.tables import find

MAC_KEY: Final = 32
STRANGER: Final = -1  # session row of a packet that Python is to look at
SIFTED: Final = -2  # of one that has been dropped
INITIATION: Final = -3  # of one that bears a right mac1, for us
_FORGED: Final = int(Drop.FORGED_HANDSHAKE)
_UNKNOWN: Final = int(Drop.UNKNOWN_CID)


@kernel(
    "i8", "u1[]", "i8[]", "i8[]", "i8", "i8[]", "i8[]", "i8", "i8", "i8", "i8", "u1[]", "i8", "u1[]", "i8[]", "i8[]"
)  # fmt: skip
def sift_strangers(
    pool: Any, slots: Any, rows: Any, n: Int, awaited_keys: Any, awaited_values: Any, awaited_multiplier: Int,
    multiplier: Int, workers: Int, me: Int, mac_keys: Any, n_keys: Int, digest: Any, done: Any, drops: Any,
) -> Any:  # fmt: skip
    """Drop what cannot be an initiation: rows[i] becomes SIFTED, its slot goes to done, drops[code] counts it.

    Of what can, rows[i] becomes INITIATION.
    `mac_keys`: `n_keys` keys of mac1, 32 bytes each; none at a node that answers nobody. What comes under an awaited CID, and
    what belongs to another worker, stays. `digest`: 16 bytes of scratch. Returns how many were dropped.
    """
    dropped = 0
    for i in range(n):
        if np.int64(rows[i]) != STRANGER:
            continue
        at = np.int64(slots[i]) * PACKET_SIZE
        if find(awaited_keys, awaited_values, awaited_multiplier, read_u64(pool, at)) >= 0:
            continue
        if workers > 1 and worker_at(pool, int(at), multiplier, workers) != me:
            continue
        genuine = False
        packet = address(pool) + at
        for k in range(n_keys):
            blake2b(address(digest), MAC_SIZE, packet, INIT_MAC1, address(mac_keys) + k * MAC_KEY, MAC_KEY)
            if memcmp(address(digest), packet + INIT_MAC1, MAC_SIZE) == 0:
                genuine = True
                break
        if genuine:
            rows[i] = INITIATION
            continue
        code = _FORGED if n_keys > 0 else _UNKNOWN
        drops[code] = np.int64(drops[code]) + 1
        rows[i] = SIFTED
        done[dropped] = slots[i]
        dropped += 1
    return dropped
