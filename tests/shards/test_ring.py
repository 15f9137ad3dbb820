"""Rings: order, room, slots that come back, what a death leaves, and no wake-up lost."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.columns import Columns, allocate
from nyx.errors import InternalError
from nyx.kernel import PLAIN, Int, address, foreign, kernel, load_acquire, store_release
from shards import ring
from shards.memory import Memory
from shards.poller import drain, make_event
from shards.pool import Pool, pool_columns
from shards.ring import RING_SIZE, Rings, ring_columns

_read = foreign(None, "read", "i8", "i4", "i8", "i8")


class Node:
    """Rings and pools of a few workers in one process."""

    def __init__(self, workers: int = 2, slots: int = 2048) -> None:
        self.workers = workers
        self.columns: Columns = allocate([*ring_columns(workers), *pool_columns(workers, slots)])
        self.events = [make_event() for _ in range(workers)]

    def life(self, worker: int) -> tuple[Rings, Pool]:
        """A worker starts, for the first time or again."""
        rings = Rings(self.columns, worker, self.workers, self.events)
        return rings, Pool(self.columns, worker, self.workers, rings.in_use())

    def close(self) -> None:
        for event in self.events:
            os.close(event)


def test_slots_go_over_and_come_back() -> None:
    node = Node(workers=3)
    (first, pool), (second, _), (third, _) = (node.life(worker) for worker in range(3))
    slots = pool.take(100)
    assert first.push(1, slots, 60) == 60
    assert first.push(2, slots[60:], 40) == 40
    assert pool.free_count == 2048 - 100
    assert second.take(0) == 60
    assert second.taken[:60].tolist() == slots[:60].tolist()
    assert first.reclaim(pool) == 0
    second.done(0)
    assert third.take(0, 7) == 7
    third.done(0)
    assert first.reclaim(pool) == 67
    assert third.take(0) == 33
    third.done(0)
    assert first.reclaim(pool) == 33
    assert third.take(1) == second.take(2) == 0
    pool.check_invariants()
    assert pool.free_count == 2048
    node.close()


def test_a_full_ring_takes_no_more() -> None:
    node = Node()
    first, pool = node.life(0)
    second, _ = node.life(1)
    slots = pool.take(RING_SIZE + 10)
    assert first.push(1, slots, len(slots)) == RING_SIZE
    assert first.push(1, slots[RING_SIZE:], 10) == 0
    assert second.take(0, 5) == 5
    assert first.push(1, slots[RING_SIZE:], 10) == 0  # taken is not done
    second.done(0)
    assert first.push(1, slots[RING_SIZE:], 10) == 5
    node.close()


@given(
    st.lists(st.tuples(st.sampled_from(["push", "take", "done", "reclaim", "first", "second"]), st.integers(1, 700)), max_size=60)
)
def test_order_and_slots_hold_over_deaths(steps: list[tuple[str, int]]) -> None:
    """Model: what is pushed arrives once and in order, but for batches in work when the consumer died."""
    node = Node()
    (first, pool), (second, _) = node.life(0), node.life(1)
    queue: list[int] = []
    working: list[int] = []
    number = 0
    for step, n in steps:
        if step == "push":
            slots = pool.take(n)
            values = slots | (np.arange(number, number + len(slots), dtype=np.int64) << 32)
            pushed = first.push(1, values, len(values))
            queue += values[:pushed].tolist()
            pool.give(slots[pushed:])
            number += pushed
        elif step == "take":
            count = second.take(0, n)
            got = second.taken[:count].tolist()
            assert got == queue[:count]
            working += got
            del queue[:count]
        elif step == "done":
            second.done(0)
            working.clear()
        elif step == "reclaim":
            first.reclaim(pool)
            assert pool.free_count == 2048 - len(queue) - len(working)
        elif step == "first":
            first, pool = node.life(0)
        else:
            second, _ = node.life(1)
            assert second.repaired == bool(working)
            working.clear()
        first.check_invariants()
        second.check_invariants()
        pool.check_invariants()
    second.take(0)
    second.done(0)
    first.reclaim(pool)
    assert pool.free_count == 2048
    node.close()


def test_a_sleeper_is_woken_and_only_a_sleeper() -> None:
    node = Node()
    (first, pool), (second, _) = node.life(0), node.life(1)
    first.push(1, pool.take(1), 1)
    assert not drain(node.events[1])
    assert not second.may_sleep()  # something is there
    assert not node.columns["sleeping"].any()
    second.take(0)
    second.done(0)
    assert second.may_sleep()
    first.push(1, pool.take(1), 1)
    assert drain(node.events[1])
    second.awake()
    first.push(1, pool.take(1), 1)
    assert not drain(node.events[1])
    node.close()


def test_positions_out_of_order_are_found() -> None:
    node = Node()
    first, _ = node.life(0)
    node.columns["rings"][ring._RING_WORDS] = -1
    with pytest.raises(InternalError):
        first.check_invariants()
    node.close()


# ---------------------------------------------------------------- two processes at once


def forked(work: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        finally:
            os._exit(99)
    return child


def test_order_between_two_processes(rng: random.Random) -> None:
    total = 20_000 if PLAIN else 500_000
    memory = Memory.create("nyx-test", [*ring_columns(2), *pool_columns(2, 2048)])
    events = [make_event(), make_event()]

    def consume() -> int:
        rings, expected = Rings(memory.columns, 1, 2, events), 0
        while expected < total:
            n = rings.take(0, 64)
            if rings.taken[:n].tolist() != list(range(expected, expected + n)):
                return 1
            expected += n
            rings.done(0)
        return 0

    child = forked(consume)
    producer, sent = Rings(memory.columns, 0, 2, events), 0
    while sent < total:
        n = min(rng.randrange(1, 200), total - sent)
        sent += producer.push(1, np.arange(sent, sent + n, dtype=np.int64), n)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for event in events:
        os.close(event)


Words = Any


@kernel("i8", "i8[]", "i8", "i8")
def _meet(sync: Words, me: Int, i: Int) -> Int:
    """Spin until both sides have come to round i."""
    base = address(sync)
    store_release(base + 64 * np.int64(me), np.int64(i))
    while load_acquire(base + 64 * (1 - np.int64(me))) < i:
        pass
    return np.int64(0)


@kernel("i8", "i8[]", "i8[]", "i8[]", "i8[]", "i8", "i8")
def _push_rounds(rings: Words, sleeping: Words, sync: Words, values: Words, event: Int, rounds: Int) -> Int:
    for i in range(1, rounds + 1):
        _meet(sync, 0, 3 * i)
        ring.push(rings, sleeping, 2, 0, 1, values, 1, event)
        _meet(sync, 0, 3 * i + 1)
        _meet(sync, 0, 3 * i + 2)
    return np.int64(0)


@kernel("i8", "i8[]", "i8[]", "i8[]", "i8[]", "i8", "i8")
def _sleep_rounds(rings: Words, sleeping: Words, sync: Words, out: Words, event: Int, rounds: Int) -> Int:
    """Rounds in which the consumer went to sleep beside a descriptor and nobody signalled it."""
    lost = np.int64(0)
    for i in range(1, rounds + 1):
        _meet(sync, 1, 3 * i)
        slept = ring.may_sleep(rings, sleeping, 2, 1)
        _meet(sync, 1, 3 * i + 1)
        woken = np.int64(_read(event, address(out), 8))
        if slept == 1 and woken != 8:
            lost += 1
        sleeping[8] = 0
        ring.take(rings, 2, 0, 1, out, 8)
        ring.done(rings, 2, 0, 1)
        _meet(sync, 1, 3 * i + 2)
    return lost


def test_no_wake_up_is_lost() -> None:
    """The store-buffer race of sleeping, provoked: both sides act in the same moment, each round."""
    rounds = 300 if PLAIN else 200_000
    memory = Memory.create("nyx-test", ring_columns(2))
    rings, sleeping = memory.columns["rings"], memory.columns["sleeping"]
    event = make_event()
    sync = Memory.create("nyx-sync", ring_columns(1)).columns["rings"]
    out = np.zeros(16, np.int64)
    child = forked(lambda: min(int(_sleep_rounds(rings, sleeping, sync, out, event, rounds)), 98))
    _push_rounds(rings, sleeping, sync, np.zeros(1, np.int64), event, rounds)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(event)
