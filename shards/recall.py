"""How much memory the replay filter of a worker may take, and giving back what its generations have stopped using.

Place on a packet's way: none. The filter sizes itself by the rate of cells, within what it is told here: both generations
together take at most one part in SHARE of the worker's part of the node's memory: a flood of cells cannot take the streams'.
Source: docs/protocol.md, "Replay filter of a relay"; `nyx/onion/filter.py`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.onion.filter import BUCKET, start_filter, unused_parts
from nyx.onion.ratchet import MEMORY_PARTS, PARTS
from nyx.stats import Counter
from shards.cap import cap_bytes
from shards.context import WorkerContext
from shards.footprint import give_back

SHARE: Final = 8
FILTER_BUCKETS: Final = 1 << 22  # of a generation at most: 15 million cells, 64 MiB of memory that only such a rate touches
_BOTH: Final = 2 * 4 * BUCKET  # bytes of a bucket in both generations


class Recall:
    """The replay filter of one worker, between batches."""

    def __init__(self, context: WorkerContext, statistics: NDArray[np.int64]) -> None:
        self._context = context
        self._statistics = statistics
        self._state = context.columns["filter"]
        self._most = -1
        self._early = int(self._state["early"][0])
        self._turns = -1
        self.look()

    def look(self) -> None:
        """A few times a second: what the memory cap allows now, and what the last turn left behind."""
        context, state = self._context, self._state[0]
        most = cap_bytes(context.config.limits.memory) // context.workers // SHARE // _BOTH
        if most != self._most:
            self._most = most
            memory = context.config.node.ratchet * 1_000_000_000 // PARTS * MEMORY_PARTS
            start_filter(context.columns, context.entropy, most, memory)
        early = int(state["early"])
        self._statistics[Counter.FILTER_EARLY] += early - self._early
        self._early = early
        if int(state["turns"]) != self._turns:
            self._turns = int(state["turns"])
            for part in unused_parts(context.columns):
                give_back(part)
