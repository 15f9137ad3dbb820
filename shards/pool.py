"""Packet slots: 1280 bytes each, in one vector that every worker of the node sees; each worker hands out its own range.

Place on a packet's way: a packet stays in the slot it was received into until it is sent, dropped or copied into a stream.
A slot's number names it to every worker, so a packet that another worker must handle crosses a ring as a number, not as bytes.
The free list is private to its worker and derived: after a crash it is built again from what the rings still name.
Last in, first out: at low load few slots are touched, and those are in the cache.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.errors import InternalError
from nyx.kernel import inline, kernel
from nyx.wire.geometry import PACKET_SIZE

PACKETS_DEFAULT: Final = 8192  # slots of a worker: 10 MiB, 80 ms at 1 Gbps

Slots = NDArray[np.int64]


def pool_columns(workers: int, count: int = PACKETS_DEFAULT) -> list[Column]:
    """The shared vector of slots of all workers."""
    return [Column("packets", np.dtype(np.uint8), workers * count * PACKET_SIZE)]


@inline
def take_slots(free: Any, state: Any, out: Any, at: Any, want: Any) -> Any:
    """Kernel helper: move up to `want` free slots to out[at:]; how many it were."""
    left = np.int64(state[0])
    count = min(np.int64(want), left)
    for i in range(count):
        out[at + i] = free[left - 1 - i]
    state[0] = left - count
    return count


@inline
def give_slot(free: Any, state: Any, slot: Any) -> Any:
    """Kernel helper: put one slot back."""
    left = np.int64(state[0])
    free[left] = slot
    state[0] = left + 1
    return left + 1


@kernel("i8", "i8[]", "i8[]", "i8[]", "i8")
def take(free: Slots, state: Slots, out: Slots, want: int) -> int:
    """Move up to `want` free slots to the front of `out`; how many it were."""
    return take_slots(free, state, out, 0, want)  # type: ignore[no-any-return]


@kernel("i8", "i8[]", "i8[]", "i8[]", "i8")
def give(free: Slots, state: Slots, slots: Slots, n: int) -> int:
    """Put slots[:n] back; how many are free now. The caller owned every one of them, once."""
    for i in range(n):
        give_slot(free, state, np.int64(slots[i]))
    return np.int64(state[0])  # type: ignore[return-value]


class Pool:
    """One worker's range of the node's slots.

    `packets` u1[] is the whole vector: slot s lies at packets[s * 1280 : (s + 1) * 1280].
    `free` i8[] and `state` i8[1] (number of free slots) go to kernels, which take from and give to the end of free[:state[0]].
    """

    def __init__(self, columns: Columns, index: int = 0, workers: int = 1, in_use: Iterable[int] = ()) -> None:
        """`in_use`: slots of this range that rings still name after a crash; everything else is free."""
        self.packets: NDArray[np.uint8] = columns["packets"]
        self.count = self.packets.size // PACKET_SIZE // workers
        self.first = index * self.count
        taken = set(in_use)
        self.free: Slots = np.zeros(self.count, np.int64)
        self.state: Slots = np.zeros(1, np.int64)
        left = [slot for slot in range(self.first + self.count - 1, self.first - 1, -1) if slot not in taken]
        self.free[: len(left)] = left
        self.state[0] = len(left)

    @property
    def free_count(self) -> int:
        """How many slots are free."""
        return int(self.state[0])

    def take(self, want: int) -> Slots:
        """Up to `want` slots, now the caller's."""
        out = np.zeros(want, np.int64)
        return out[: int(take(self.free, self.state, out, want))]

    def give(self, slots: Slots) -> None:
        """Put slots back that the caller owned."""
        give(self.free, self.state, slots, len(slots))

    def check_invariants(self) -> None:
        """Raise when a slot is free twice or is not ours."""
        free = self.free[: self.free_count]
        if len(np.unique(free)) != len(free):
            raise InternalError("a slot is free twice")
        if len(free) and not (self.first <= free.min() and free.max() < self.first + self.count):
            raise InternalError("a slot of another worker is in the free list")
