"""Session rows: layout, wiping, invariants."""

import numpy as np
import pytest

from nyx.columns import allocate
from nyx.crypto.replay import WINDOW_WORDS
from nyx.link.session import SESSION, SESSION_FREE, SESSION_LIVE, check_session, session_bytes, session_columns, wipe_session


def test_commit_words_are_aligned() -> None:
    assert SESSION.isalignedstruct
    assert SESSION.itemsize % 8 == 0
    for name in ("state", "send_next", "received_next"):
        assert SESSION.fields is not None
        assert SESSION.fields[name][1] % 8 == 0


def test_a_wiped_session_is_zero_and_its_neighbours_are_not_touched() -> None:
    columns = allocate(session_columns(3))
    for row in range(3):
        session_bytes(columns, row)[:] = 0xFF
        columns["session_windows"][row * WINDOW_WORDS : (row + 1) * WINDOW_WORDS] = 1
    wipe_session(columns, 1)
    check_session(columns, 1)
    assert columns["sessions"][1]["state"] == SESSION_FREE
    assert not session_bytes(columns, 1).any()
    assert (session_bytes(columns, 0) == 0xFF).all()
    assert (session_bytes(columns, 2) == 0xFF).all()
    assert np.count_nonzero(columns["session_windows"]) == 2 * WINDOW_WORDS


def test_invariants_see_a_broken_row() -> None:
    columns = allocate(session_columns(1))
    check_session(columns, 0)
    columns["session_windows"][5] = 1
    with pytest.raises(AssertionError, match="fresh window"):
        check_session(columns, 0)
    columns["session_windows"][5] = 0
    columns["sessions"][0]["state"] = SESSION_LIVE
    columns["sessions"][0]["packets_out"] = 1
    with pytest.raises(AssertionError):
        check_session(columns, 0)
