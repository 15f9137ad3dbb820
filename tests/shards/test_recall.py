"""What the replay filter may take of the node's memory, and that it gives back what it does not use."""

import mmap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nyx.columns import offsets, view
from nyx.onion.filter import SMALLEST, filter_columns
from nyx.stats import COUNTERS, Counter
from shards.recall import Recall

BUCKETS = 4 * SMALLEST


@pytest.fixture
def context(rng):
    layout = filter_columns(BUCKETS)
    memory = mmap.mmap(-1, offsets(layout)[1])
    config = SimpleNamespace(limits=SimpleNamespace(memory=1024), node=SimpleNamespace(ratchet=3))
    return SimpleNamespace(columns=view(layout, memory), config=config, workers=2, entropy=rng.randbytes)


def recall(context: Any) -> tuple[Recall, Any, Any]:
    statistics = np.zeros(len(COUNTERS), np.int64)
    return Recall(context, statistics), context.columns["filter"][0], statistics


def test_the_filter_gets_an_eighth_of_the_worker_s_part_and_follows_a_reload(context):
    room, state, _ = recall(context)
    assert state["most"] == BUCKETS, "the columns have no more"
    assert state["lasts"] == 5 * 1_000_000_000, "longer than a layer epoch opens"
    context.config.limits.memory = 16
    room.look()
    assert state["most"] * 32 == (16 << 20) // 2 // 8


def test_what_a_turn_leaves_is_given_back(context):
    room, state, _ = recall(context)
    table = context.columns["filter_table"]
    table[:] = 7
    room.look()
    assert table.all(), "nothing has turned"
    state["turns"] += 1
    room.look()
    half = len(table) // 2
    used = 4 * SMALLEST
    assert (table[:used] == 7).all()
    assert (table[half : half + used] == 7).all()
    assert not table[used:half].any()
    assert not table[half + used :].any()


def test_early_turns_are_counted_over_lives(context):
    room, state, statistics = recall(context)
    state["early"] = 3
    room.look()
    room.look()
    assert statistics[Counter.FILTER_EARLY] == 3
    _, state, statistics = recall(context)
    assert statistics[Counter.FILTER_EARLY] == 0, "an earlier life has counted them"
