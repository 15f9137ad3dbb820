"""The set of opened builds: exact, shared by workers, kept over a worker's death, bounded, and never open when full."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.columns import allocate
from nyx.onion import seen as module
from nyx.onion.seen import KEPT, BuildReplay, seen_columns

WALL = 1_800_000_000


def logs(workers):
    return allocate(seen_columns(workers))["builds_seen"]


def test_workers_share_what_they_have_seen_and_a_new_life_keeps_it(rng):
    words = logs(2)
    one, two = BuildReplay(words, 0), BuildReplay(words, 1)
    values = [rng.randbytes(32) for _ in range(200)]
    for i, x in enumerate(values):
        assert not (one, two)[i % 2].seen(x, WALL, WALL)
    for x in values:
        assert one.seen(x, WALL, WALL)
        assert two.seen(x, WALL, WALL)
        assert BuildReplay(words, 0).seen(x, WALL, WALL)
    assert not one.seen(values[0], WALL + 2 * KEPT, WALL + 2 * KEPT), "forgotten once its age alone refuses it"


def test_a_clock_that_is_set_ahead_and_back_opens_nothing_again(rng):
    words = logs(2)
    one, two = BuildReplay(words, 0), BuildReplay(words, 1)
    old, new = rng.randbytes(32), rng.randbytes(32)
    for x, by in ((old, one), (new, two)):
        assert not by.seen(x, WALL, WALL)
    assert not one.seen(rng.randbytes(32), WALL + 3600, WALL + 3600)
    for x in (old, new):
        assert one.seen(x, WALL, WALL + 5)
        assert two.seen(x, WALL, WALL + 5)


@pytest.mark.parametrize("created", [-600, 0, 120])
def test_an_entry_is_kept_to_the_last_second_in_which_its_record_is_valid(rng, created):
    words, x = logs(1), rng.randbytes(32)
    seen = BuildReplay(words, 0)
    assert not seen.seen(x, WALL + created, WALL)
    for later in range(created + KEPT + 1):
        if later % 59 == 0 or later > created + KEPT - 3:
            assert seen.seen(x, WALL + created, WALL + later)
            assert BuildReplay(words, 0).seen(x, WALL + created, WALL + later)


def test_a_full_log_counts_as_seen_and_opens_when_its_oldest_are_invalid(rng, monkeypatch):
    monkeypatch.setattr(module, "SIZE", 32)
    monkeypatch.setattr(module, "_WORDS", 1 + 32 * 3)
    words = logs(2)
    seen, other = BuildReplay(words, 0), BuildReplay(words, 1)
    values = [rng.randbytes(32) for _ in range(33)]
    assert [seen.seen(x, WALL, WALL) for x in values] == [False] * 32 + [True]
    assert not other.seen(rng.randbytes(32), WALL, WALL), "another worker's log has room"
    assert seen.seen(rng.randbytes(32), WALL + KEPT, WALL + KEPT), "the oldest is valid in this second still"
    later = WALL + KEPT + 1
    fresh = [rng.randbytes(32) for _ in range(32)]
    assert not any(seen.seen(x, later, later) for x in fresh)
    assert all(seen.seen(x, later, later) for x in fresh)
    assert all(BuildReplay(words, 1).seen(x, later, later) for x in fresh)


def test_a_flood_leaves_memory_bounded(rng):
    seen = BuildReplay(logs(1), 0)
    for minute in range(100):
        for _ in range(50):
            seen.seen(rng.randbytes(32), WALL + 60 * minute, WALL + 60 * minute)
    assert len(seen._until) <= 50 * 21
    assert repr(seen) == f"BuildReplay(entries={len(seen._until)})"


@given(st.integers(0, 1 << 32), st.integers(1, 3))
def test_against_a_set_of_the_whole_history(seed, workers):
    rng = random.Random(seed)
    words = logs(workers)
    views = [BuildReplay(words, i) for i in range(workers)]
    model: dict[bytes, int] = {}
    wall = WALL
    values = [rng.randbytes(32) for _ in range(12)]
    for _ in range(80):
        wall += rng.choice((0, 0, 1, 30, 200))
        worker = rng.randrange(workers)
        if rng.random() < 0.1:
            views[worker] = BuildReplay(words, worker)
        x = rng.choice(values)
        if x in model and model[x] + KEPT < wall:
            values[values.index(x)] = x = rng.randbytes(32)
        created = model.get(x, wall + rng.randint(-600, 120))
        assert views[worker].seen(x, created, wall) == (x in model)
        model[x] = created
