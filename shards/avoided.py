"""Which sets of hops a client does not choose again for a while, and why.

Place on a packet's way: before it, when a path is drawn. Links are authenticated, so a failed cell proves that a hop of its
circuit changed it; which one cannot be told, so the whole set is avoided, in whatever order. It stands in a column: who could
make the client's worker die could otherwise make it forget. A path whose build was not answered is avoided too, for a shorter
time and in this life alone. Neither is ever a reason for another guard: where the network gives no other set, an avoided one is
chosen.
Source: docs/protocol.md, "Opened cell", "States of a circuit".
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.wire.geometry import HOPS_MAX, NODE_ID_SIZE

SECOND: Final = 1_000_000_000
SPOILED_FOR: Final = 600 * SECOND  # as long as a circuit takes streams
SPOILED_PATHS: Final = 64  # one more takes the place of the one that is over first
LATE_FOR: Final = 60 * SECOND
LATE_PATHS: Final = 16

# until: ns, monotonic; the commit word, 0 for a free row
SPOILED: Final = np.dtype([("until", np.int64), ("hops", np.int64), ("nodes", np.uint8, (HOPS_MAX * NODE_ID_SIZE,))], align=True)

Hops = frozenset[bytes]  # node ids


def avoided_columns() -> list[Column]:
    """The column of spoiled paths."""
    return [Column("spoiled_paths", SPOILED, SPOILED_PATHS)]


class Avoided:
    """The sets of hops that this worker's client avoids."""

    def __init__(self, columns: Columns) -> None:
        self._spoiled: NDArray[Any] = columns["spoiled_paths"]
        self._late: deque[tuple[Hops, int]] = deque(maxlen=LATE_PATHS)  # node ids, until when

    def late(self, path: Sequence[bytes], now: int) -> None:
        """A build over these hops was not answered in time."""
        self._late.append((frozenset(path), now + LATE_FOR))

    def spoiled(self, path: Sequence[bytes], now: int) -> None:
        """A circuit over these hops was closed by a failed cell."""
        ids = b"".join(path)
        row = self._spoiled[int(np.argmin(self._spoiled["until"]))]
        row["until"] = 0
        row["hops"] = len(path)
        row["nodes"][: len(ids)] = np.frombuffer(ids, np.uint8)
        row["until"] = now + SPOILED_FOR

    def sets(self, now: int) -> list[Collection[Hops]]:
        """What to avoid when a path is drawn: first everything, then, where no path is left, less and less."""
        spoiled = {_hops(row) for row in self._spoiled[self._spoiled["until"] > now]}
        late = {hops for hops, until in self._late if until > now}
        return [found for found in (spoiled | late, spoiled) if found] + [frozenset()]


def _hops(row: Any) -> Hops:
    ids = row["nodes"].tobytes()[: int(row["hops"]) * NODE_ID_SIZE]
    return frozenset(ids[at : at + NODE_ID_SIZE] for at in range(0, len(ids), NODE_ID_SIZE))
