"""The replay filter: what it saw within a generation it sees again, whatever the load; and it forgets after two."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.columns import Columns, allocate
from nyx.crypto.scratch import new_scratch
from nyx.kernel import PLAIN, kernel
from nyx.onion.filter import (
    BUCKET,
    FILTER,
    GENERATION_NS,
    SMALLEST,
    filter_columns,
    filter_fetch,
    filter_seen,
    filter_value,
    start_filter,
    unused_parts,
)
from tests.reference.primitives import siphash

SECOND = 1_000_000_000


@kernel("i8", FILTER, "u4[]", "i8[]", "i8[]", "u1[]", "i8", "i8", "i8[]", "u1[]")
def ask(state: Any, table: Any, circuits: Any, directions: Any, cells: Any, n: int, now: int, seen: Any, scratch: Any) -> int:
    for i in range(n):
        circuit, direction = np.int64(circuits[i]), np.int64(directions[i])
        value = filter_value(state, circuit, direction, cells, i * 16, scratch)
        filter_fetch(state, table, value)
        seen[i] = filter_seen(state, table, value, now)
    return 0


class Filter:
    """A filter and the question it answers, for many cells at once."""

    def __init__(self, buckets: int, rng: random.Random) -> None:
        self.columns: Columns = allocate(filter_columns(buckets))
        start_filter(self.columns, rng.randbytes)
        self.scratch = new_scratch()

    @property
    def state(self) -> Any:
        return self.columns["filter"][0]

    def seen(self, heads: list[bytes], now: int, circuit: int = 7, direction: int = 0) -> list[int]:
        n = len(heads)
        seen = np.full(n, -1, np.int64)
        cells = np.frombuffer(b"".join(heads), np.uint8).copy()
        circuits, directions = np.full(n, circuit, np.int64), np.full(n, direction, np.int64)
        ask(self.columns["filter"], self.columns["filter_table"], circuits, directions, cells, n, now, seen, self.scratch)
        return seen.tolist()


def heads_of(count: int, rng: random.Random) -> list[bytes]:
    return [rng.randbytes(16) for _ in range(count)]


def test_a_repeated_cell_is_seen_and_others_are_not(rng: random.Random) -> None:
    table = Filter(1024, rng)
    heads = heads_of(500, rng)
    assert table.seen(heads, 1) == [0] * 500
    assert table.seen(heads, 2) == [1] * 500
    assert table.seen(heads, 2, circuit=8) == [0] * 500
    assert table.seen(heads, 2, direction=1) == [0] * 500
    assert table.state["seen"] == 500
    assert table.state["count"] == 1500
    assert table.state["early"] == 0


def test_time_turns_generations(rng: random.Random) -> None:
    table = Filter(256, rng)
    old, new = heads_of(100, rng), heads_of(100, rng)
    start = 5 * SECOND
    assert sum(table.seen(old, start)) == 0
    assert sum(table.seen(new, start + GENERATION_NS)) == 0
    assert table.state["turns"] == 1
    assert sum(table.seen(old, start + 2 * GENERATION_NS - 1)) == 100, "remembered for at least a generation"
    assert sum(table.seen(old, start + 2 * GENERATION_NS)) == 0, "forgotten after two"
    assert sum(table.seen(new, start + 2 * GENERATION_NS)) == 100
    assert table.state["early"] == 0


def test_fills_to_nine_tenths_before_it_turns_early(rng: random.Random) -> None:
    buckets = 256 if PLAIN else 16384
    table = Filter(buckets, rng)
    count = buckets * BUCKET * 9 // 10
    heads = heads_of(count, rng)
    assert sum(table.seen(heads, 1)) <= 1
    assert table.state["early"] == 0
    assert table.seen(heads, 1) == [1] * count


@settings(max_examples=15 if PLAIN else 60)
@given(st.integers(0, 1 << 30), st.sampled_from([2, 4, 16]), st.integers(1, 300))
def test_a_full_table_turns_early_and_never_passes_a_repeat(seed: int, buckets: int, count: int) -> None:
    rng = random.Random(seed)
    table = Filter(buckets, rng)
    generations: list[list[bytes]] = [[]]
    for head in heads_of(count, rng):
        turns = int(table.state["turns"])
        if table.seen([head], 1) == [1]:
            continue  # a false drop, 2^-28 a time
        generations[-1].append(head)
        if table.state["turns"] != turns:
            generations.append([])
        assert table.seen([head], 1) == [1]
    remembered = [h for g in generations[-2:] for h in g]
    assert table.seen(remembered, 1) == [1] * len(remembered)
    assert table.state["early"] == table.state["turns"] == len(generations) - 1
    assert table.state["buckets"].tolist() == [buckets] * 2, "there is room for no more"
    if count > 2 * buckets * BUCKET:
        assert table.state["early"] >= 1


def test_a_generation_is_sized_for_the_rate_of_the_one_before(rng: random.Random) -> None:
    table = Filter(1 << 17, rng)
    sizes = table.state["buckets"].tolist
    assert sizes() == [SMALLEST, SMALLEST]
    if PLAIN:
        table.state["count"], table.state["turned"] = 150_000, 1
    else:
        table.seen(heads_of(60_000, rng), 1)
        table.state["count"] += 90_000
    kept = heads_of(100, rng)
    table.seen(kept, GENERATION_NS)
    last = heads_of(100, rng)
    table.seen(last, 1 + GENERATION_NS)
    assert table.state["turns"] == 1
    assert sizes() == [SMALLEST, 4 * SMALLEST], "150,000 cells and half as many again need 60,000 buckets"
    assert table.seen(kept + last, 2 + GENERATION_NS) == [1] * 200, "each generation is read by its own size"
    table.seen(heads_of(1, rng), 3 * GENERATION_NS)
    assert sizes() == [SMALLEST, 4 * SMALLEST], "an idle relay's generations are small again"
    table.seen(heads_of(1, rng), 5 * GENERATION_NS)
    assert sizes() == [SMALLEST, SMALLEST]


def test_an_early_turn_makes_the_next_generation_larger(rng: random.Random) -> None:
    buckets = 64 if PLAIN else SMALLEST
    table = Filter(8 * buckets, rng)
    table.state["buckets"] = buckets
    table.state["most"] = 8 * buckets
    heads = heads_of(buckets * BUCKET, rng)
    for at in range(0, len(heads), 100):
        table.seen(heads[at : at + 100], 1 + at * GENERATION_NS // len(heads) // 10)
    assert table.state["early"] == table.state["turns"] == 1
    assert int(table.state["buckets"][1]) >= 2 * buckets
    assert table.seen(heads, GENERATION_NS // 2) == [1] * len(heads)


def test_what_no_generation_reads_is_told(rng: random.Random) -> None:
    table = Filter(4 * SMALLEST, rng)
    entries = table.columns["filter_table"]
    entries[:] = 1
    parts = unused_parts(table.columns)
    assert [len(part) for part in parts] == [3 * SMALLEST * BUCKET] * 2
    for part in parts:
        part[:] = 0
    table.state["buckets"] = 4 * SMALLEST
    assert not any(len(part) for part in unused_parts(table.columns))
    assert int(entries.sum()) == 2 * SMALLEST * BUCKET


def test_less_room_than_there_is(rng: random.Random) -> None:
    columns = allocate(filter_columns(1024))
    start_filter(columns, rng.randbytes, most=700)
    assert columns["filter"][0]["most"] == 512
    assert columns["filter"][0]["buckets"].tolist() == [512, 512]
    start_filter(columns, rng.randbytes)
    assert columns["filter"][0]["most"] == 1024


def test_entries_are_the_documented_hash(rng: random.Random) -> None:
    table = Filter(64, rng)
    key = table.state["key"].tobytes()
    head = rng.randbytes(16)
    assert table.seen([head], 1, circuit=0x01020304, direction=1) == [0]
    value = int.from_bytes(siphash(key, bytes([1, 2, 3, 4, 1]) + head, 8), "little")
    (place,) = np.nonzero(table.columns["filter_table"])[0]
    assert table.columns["filter_table"][place] == (value & 0xFFFFFFFF or 1)
    assert place // BUCKET == (value >> 32) % 64


def test_the_key_is_drawn_once(rng: random.Random) -> None:
    table = Filter(64, rng)
    key = table.state["key"].tobytes()
    assert any(key)
    start_filter(table.columns, rng.randbytes)
    assert table.state["key"].tobytes() == key


def test_scratch_is_wiped(rng: random.Random) -> None:
    table = Filter(64, rng)
    table.seen(heads_of(3, rng), 1)
    assert not table.scratch.any()


@pytest.mark.parametrize("buckets", [0, 1, 3, 100, 1 << 32, -2])
def test_sizes_that_are_no_table(buckets: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        filter_columns(buckets)
