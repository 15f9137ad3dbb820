"""Rows that a turn has something to do for, as one byte each: marked one by one or many at once, gathered once a turn.

Place: between what wakes a worker (descriptors, events of streams) and the kernels that move bytes for a list of rows. Asking
whether any row is marked is a search in memory, not a call into the array library: every turn of an end asks several times.
"""

import numpy as np
from numpy.typing import NDArray


class RowMarks:
    """A mark for each of `count` rows. `vector` bool[count] is indexed by numbers or vectors of numbers."""

    def __init__(self, count: int) -> None:
        self._raw = bytearray(count)
        self.vector: NDArray[np.bool_] = np.frombuffer(self._raw, np.bool_)

    def __bool__(self) -> bool:
        """Whether any row is marked."""
        return 1 in self._raw

    def gather(self, rows: NDArray[np.int64]) -> int:
        """Move the marked rows to the front of `rows`, ascending, and unmark them; how many they were."""
        if 1 not in self._raw:
            return 0
        found = np.flatnonzero(self.vector)
        rows[: len(found)] = found
        self.vector[found] = False
        return len(found)
