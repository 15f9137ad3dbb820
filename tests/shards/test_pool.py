"""Slots: each is somebody's, once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.columns import allocate
from nyx.errors import InternalError
from nyx.wire.geometry import PACKET_SIZE
from shards.pool import Pool, pool_columns


def test_workers_have_ranges_of_one_vector() -> None:
    columns = allocate(pool_columns(3, 10))
    pools = [Pool(columns, index, 3) for index in range(3)]
    taken = [pool.take(100).tolist() for pool in pools]
    assert [sorted(slots) for slots in taken] == [list(range(10)), list(range(10, 20)), list(range(20, 30))]
    assert all(pool.packets.size == 30 * PACKET_SIZE for pool in pools)


def test_what_rings_still_name_is_not_free() -> None:
    pool = Pool(allocate(pool_columns(2, 10)), 1, 2, in_use=[12, 19, 3])
    assert set(pool.take(10).tolist()) == set(range(10, 20)) - {12, 19}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=40))
def test_slots_are_neither_lost_nor_doubled(steps: list[tuple[bool, int]]) -> None:
    pool = Pool(allocate(pool_columns(1, 16)))
    held: list[int] = []
    for take, n in steps:
        if take:
            got = pool.take(n).tolist()
            assert len(got) == min(n, 16 - len(held))
            held += got
        else:
            pool.give(np.array(held[:n], np.int64))
            del held[:n]
        pool.check_invariants()
        assert len(set(held)) == len(held)
        assert pool.free_count + len(held) == 16


def test_a_slot_given_twice_is_found() -> None:
    pool = Pool(allocate(pool_columns(1, 4)))
    slots = pool.take(2)
    pool.give(slots[:1])
    pool.give(slots[:1])
    with pytest.raises(InternalError):
        pool.check_invariants()
    stranger = Pool(allocate(pool_columns(2, 4)), 0, 2)
    stranger.take(1)
    stranger.give(np.array([5], np.int64))
    with pytest.raises(InternalError):
        stranger.check_invariants()
