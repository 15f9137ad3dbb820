"""Rings: from each worker to each other one, a queue of descriptors in shared memory. Nobody locks, nobody copies packets.

Roles. One producer and one consumer per ring. A descriptor is slot | kind << 32; the bytes stay in the producer's slot. The
producer keeps the slot until the consumer's tail has passed it (`reclaim`); the consumer copies what it wants to keep.

Layout, in words of 8 bytes, the positions each on its own 64-byte line:
    0 head (producer)    8 taken (consumer)    16 tail (consumer)    32.. descriptors
and one column of sleeping words, a line for each worker. Positions are absolute:
tail <= taken <= head <= tail + SIZE.

    push     descriptors, then head (release). A full fence, then the consumer's sleeping word: if set, its eventfd is signalled.
    take     head (acquire), then descriptors; `taken` is stored before the first is worked on.
    done     tail = taken (release): the producer may use those slots again.
    sleep    sleeping word = 1, a full fence, then every head: nothing there means nothing can be missed. Without both fences
             each side may read before its own store is seen, and a wake-up is lost (28,623 of 2 million rounds).

Death. All positions are in the memory. The next life of a producer goes on at head, its outstanding slots are not free;
the next life of a consumer goes on at `taken`: a batch in work when a worker dies is dropped, never worked on twice. While a
consumer is dead its producers meet a full ring, drop and count.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.errors import InternalError
from nyx.kernel import Int, address, fence, foreign, inline, kernel, load_acquire, store_release
from shards.pool import Pool, give_slot

Words = NDArray[np.int64]

RING_SIZE: Final = 1024  # descriptors; an eighth of a worker's slots can be under way to one other worker
KIND_SHIFT: Final = 32
SLOT_MASK: Final = (1 << KIND_SHIFT) - 1
KIND_PACKET: Final = 0  # a packet as it came from the socket, for the worker that its CID names

_HEAD: Final = 0
_TAKEN: Final = 8
_TAIL: Final = 16
_ENTRIES: Final = 32
_RING_WORDS: Final = _ENTRIES + RING_SIZE
_LINE: Final = 8  # words of a cache line

_write = foreign(None, "write", "i8", "i4", "i8", "i8")


def ring_columns(workers: int) -> list[Column]:
    """Rings of every ordered pair, and the sleeping words."""
    return [
        Column("rings", np.dtype(np.int64), workers * workers * _RING_WORDS),
        Column("sleeping", np.dtype(np.int64), workers * _LINE),
    ]


@inline
def _ring(workers: Int, producer: Int, consumer: Int) -> Any:
    """Index of the ring's first word."""
    return (np.int64(producer) * workers + consumer) * _RING_WORDS


@kernel("i8", "i8[]", "i8[]", "i8", "i8", "i8", "i8[]", "i8", "i8")
def push(rings: Words, sleeping: Words, workers: Int, me: Int, other: Int, values: Words, n: Int, event: Int) -> Int:
    """Append as many of values[:n] as have room and wake the consumer if it sleeps; how many were appended."""
    at = _ring(workers, me, other)
    ring = address(rings) + 8 * at
    head = np.int64(rings[at + _HEAD])
    room = RING_SIZE - (head - load_acquire(ring + 8 * _TAIL))
    count = min(np.int64(n), room)
    if count <= 0:
        return np.int64(0)
    for i in range(count):
        rings[at + _ENTRIES + ((head + i) & (RING_SIZE - 1))] = values[i]
    store_release(ring + 8 * _HEAD, head + count)
    fence()
    sleeper = address(sleeping) + 8 * _LINE * other
    if load_acquire(sleeper) != 0:
        _write(event, sleeper, 8)  # the word holds 1, and an eventfd takes a word
    return count


@kernel("i8", "i8[]", "i8", "i8", "i8", "i8[]", "i8")
def take(rings: Words, workers: Int, other: Int, me: Int, out: Words, most: Int) -> Int:
    """Descriptors that `other` pushed, up to `most`, into `out`; how many. They stay valid until `done`."""
    at = _ring(workers, other, me)
    ring = address(rings) + 8 * at
    taken = np.int64(rings[at + _TAKEN])
    count = min(load_acquire(ring + 8 * _HEAD) - taken, np.int64(most))
    for i in range(count):
        out[i] = rings[at + _ENTRIES + ((taken + i) & (RING_SIZE - 1))]
    if count > 0:
        store_release(ring + 8 * _TAKEN, taken + count)
    return count


@kernel("i8", "i8[]", "i8", "i8", "i8")
def done(rings: Words, workers: Int, other: Int, me: Int) -> Int:
    """Let the producer use the slots of everything taken again; the consumer's position."""
    at = _ring(workers, other, me)
    taken = np.int64(rings[at + _TAKEN])
    store_release(address(rings) + 8 * (at + _TAIL), taken)
    return taken


@kernel("i8", "i8[]", "i8", "i8", "i8[]", "i8[]", "i8[]")
def reclaim(rings: Words, workers: Int, me: Int, passed: Words, free: Words, pool_state: Words) -> Int:
    """Free the slots that consumers have passed since passed[consumer]; how many."""
    freed = np.int64(0)
    for other in range(workers):
        at = _ring(workers, me, other)
        tail = load_acquire(address(rings) + 8 * (at + _TAIL))
        while passed[other] < tail:
            give_slot(free, pool_state, rings[at + _ENTRIES + (np.int64(passed[other]) & (RING_SIZE - 1))] & SLOT_MASK)
            passed[other] += 1
            freed += 1
    return freed


@kernel("i8", "i8[]", "i8[]", "i8", "i8")
def may_sleep(rings: Words, sleeping: Words, workers: Int, me: Int) -> Int:
    """Announce sleep; 1 when every ring to `me` is really empty, else 0 and the announcement is withdrawn."""
    mine = address(sleeping) + 8 * _LINE * np.int64(me)
    store_release(mine, np.int64(1))
    fence()
    for other in range(workers):
        at = _ring(workers, other, me)
        if load_acquire(address(rings) + 8 * (at + _HEAD)) != rings[at + _TAKEN]:
            store_release(mine, np.int64(0))
            return np.int64(0)
    return np.int64(1)


class Rings:
    """One worker's ends of all rings. `events` are the eventfds of all workers: a sleeper's is readable when it is pushed to.

    A turn: `reclaim`, take from each other worker and `done`; before waiting `may_sleep`, after it `awake`.
    """

    def __init__(self, columns: Columns, me: int, workers: int, events: Sequence[int]) -> None:
        self.rings: Words = columns["rings"]
        self.sleeping: Words = columns["sleeping"]
        self.me = me
        self.workers = workers
        self.events = list(events)
        self.others = [other for other in range(workers) if other != me]
        self.taken: Words = np.zeros(RING_SIZE, np.int64)  # what `take` brought
        self._passed: Words = np.array([self._word(me, other, _TAIL) for other in range(workers)], np.int64)
        self.repaired = 0
        for other in self.others:
            self.repaired += self._word(other, me, _TAKEN) != self._word(other, me, _TAIL)
            done(self.rings, workers, other, me)  # a batch in work when the last life ended is dropped
        self.awake()

    def _word(self, producer: int, consumer: int, word: int) -> int:
        return int(self.rings[(producer * self.workers + consumer) * _RING_WORDS + word])

    def in_use(self) -> list[int]:
        """Slots that consumers have not passed yet: to be left out of a new free list, and freed by `reclaim`."""
        found = []
        for other in self.others:
            at = (self.me * self.workers + other) * _RING_WORDS + _ENTRIES
            places = range(int(self._passed[other]), self._word(self.me, other, _HEAD))
            found += [int(self.rings[at + place % RING_SIZE]) & SLOT_MASK for place in places]
        return found

    def push(self, other: int, descriptors: Words, n: int) -> int:
        """Hand descriptors[:n] to another worker; how many had room. The rest, with its slots, stays the caller's."""
        return int(push(self.rings, self.sleeping, self.workers, self.me, other, descriptors, n, self.events[other]))

    def take(self, other: int, most: int = RING_SIZE) -> int:
        """What another worker handed over, into `taken`; how many. Call `done` when they are dealt with."""
        return int(take(self.rings, self.workers, other, self.me, self.taken, most))

    def done(self, other: int) -> None:
        """Everything taken from this worker is dealt with."""
        done(self.rings, self.workers, other, self.me)

    def reclaim(self, pool: Pool) -> int:
        """Free the slots of what others have dealt with; how many."""
        return int(reclaim(self.rings, self.workers, self.me, self._passed, pool.free, pool.state))

    def may_sleep(self) -> bool:
        """Announce sleep; False when something came in between, then do not wait."""
        return bool(may_sleep(self.rings, self.sleeping, self.workers, self.me))

    def awake(self) -> None:
        """Withdraw the announcement."""
        self.sleeping[self.me * _LINE] = 0

    def check_invariants(self) -> None:
        """Raise when the positions of a ring of ours are out of order."""
        for producer, consumer in [(self.me, o) for o in self.others] + [(o, self.me) for o in self.others]:
            head, taken, tail = (self._word(producer, consumer, word) for word in (_HEAD, _TAKEN, _TAIL))
            if not tail <= taken <= head <= tail + RING_SIZE:
                raise InternalError(f"ring {producer} to {consumer}: tail {tail}, taken {taken}, head {head}")
