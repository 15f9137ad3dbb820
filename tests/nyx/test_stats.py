"""The table of counters and its rows."""

import numpy as np

from nyx import stats
from nyx.columns import allocate
from nyx.stats import COUNTERS, Counter, add_drops, drop_counter, node_columns, statistics_columns, statistics_row
from nyx.wire.codes import Drop


def test_every_counter_and_every_drop_has_one_label() -> None:
    assert len(set(COUNTERS)) == len(COUNTERS) == len(Counter) + len(Drop) - 1
    assert [int(counter) for counter in Counter] == list(range(len(Counter)))
    assert COUNTERS[Counter.CELLS_RELAYED] == "cells_relayed"
    for reason in Drop:
        if reason is not Drop.OK:
            assert COUNTERS[drop_counter(reason)] == f"dropped_{reason.name.lower()}"


def test_rows_are_views_on_lines_of_their_own() -> None:
    statistics = allocate(statistics_columns(3))["statistics"]
    rows = [statistics_row(statistics, worker) for worker in range(3)]
    for worker, row in enumerate(rows):
        row[:] = worker + 1
    assert [set(row.tolist()) for row in rows] == [{1}, {2}, {3}]
    assert stats.ROW % 8 == 0


def test_drops_are_added_once() -> None:
    row = statistics_row(allocate(statistics_columns(1))["statistics"], 0)
    drops = np.zeros(len(Drop), np.int64)
    drops[Drop.OK], drops[Drop.BAD_TAG], drops[Drop.NO_ROUTE] = 50, 3, 4
    add_drops(row, drops)
    add_drops(row, drops)
    assert row[drop_counter(Drop.BAD_TAG)] == 3
    assert row[drop_counter(Drop.NO_ROUTE)] == 4
    assert row.sum() == 7
    assert not drops.any()


def test_the_node_has_a_row_for_each_worker() -> None:
    columns = allocate(node_columns(2))
    assert len(columns["node"]) == 1
    assert len(columns["node_workers"]) == 2
