"""The table of counters and its rows."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nyx import stats
from nyx.columns import allocate
from nyx.stats import (
    BOUNDS,
    COUNTERS,
    REFUSALS,
    UNITS,
    Counter,
    Histogram,
    Latency,
    add_drops,
    drop_counter,
    latency_histogram,
    node_columns,
    quantile,
    refusal_counters,
    statistics_columns,
    statistics_row,
)
from nyx.wire.codes import Drop


def test_every_counter_and_every_drop_has_one_label() -> None:
    assert len(set(COUNTERS)) == len(COUNTERS) == len(Counter) + len(Drop) - 1 + len(REFUSALS)
    assert UNITS.keys() <= set(COUNTERS)
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


def test_refusals_stand_where_their_labels_say() -> None:
    row = statistics_row(allocate(statistics_columns(1))["statistics"], 0)
    refusal_counters(row)[:] = range(1, len(REFUSALS) + 1)
    named = dict(zip(COUNTERS, row.tolist(), strict=True))
    assert {name: value for name, value in named.items() if value} == {
        f"refused_{label}": i for i, label in enumerate(REFUSALS, 1)
    }


def test_histograms_are_parts_of_their_workers_row() -> None:
    latencies = allocate(statistics_columns(2))["latencies"]
    private = Histogram()
    for nanoseconds in (-5, 10_000, 10_001, 80_000_000_000, 80_000_000_001):
        private.observe(nanoseconds)
    shared = latency_histogram(latencies, 1, Latency.LINK_ROUND_TRIP)
    private.drain_into(shared)
    private.drain_into(shared)
    assert (shared.counts[0], shared.counts[1], shared.counts[-2], shared.counts[-1]) == (2, 1, 1, 1)
    assert shared.total == 160_000_020_002
    others = [latency_histogram(latencies, worker, which) for worker in range(2) for which in Latency]
    assert [sum(h.counts) for h in others] == [0, 0, 0, 5]
    assert latencies.sum() == 5 + 160_000_020_002


@given(st.lists(st.integers(10_001, BOUNDS[-1]), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_at_most_one_bucket_off(times: list[int], share: float) -> None:
    histogram = Histogram()
    for nanoseconds in times:
        histogram.observe(nanoseconds)
    true = sorted(times)[math.ceil(share * len(times)) - 1]
    found = quantile(histogram.counts, share)
    assert found is not None
    assert 0.7 * true <= found <= 1.4 * true


def test_quantiles_of_nothing_and_of_what_is_above_all_bounds() -> None:
    histogram = Histogram()
    assert quantile(histogram.counts, 0.5) is None
    histogram.observe(1 << 40)
    assert quantile(histogram.counts, 0.5) == BOUNDS[-1]
