"""Marks of rows: what is marked is gathered once, in order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.edge.rowmarks import RowMarks


@given(st.lists(st.sets(st.integers(0, 40)), max_size=8))
def test_marked_rows_are_gathered_once_in_order(rounds: list[set[int]]) -> None:
    marks, work = RowMarks(41), np.zeros(41, np.int64)
    for rows in rounds:
        for row in rows:
            marks.vector[row] = True
        assert bool(marks) == bool(rows)
        n = marks.gather(work)
        assert work[:n].tolist() == sorted(rows)
        assert not marks
        assert marks.gather(work) == 0
