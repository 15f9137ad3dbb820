"""Shared memory is given back to the machine page by page, and reads as zeros afterwards."""

import os

from nyx.crypto.replay import WINDOW_WORDS
from nyx.link.session import SESSION_LIVE, session_columns, wipe_session
from shards.footprint import PAGE, clear
from shards.memory import Memory


def test_a_session_that_ends_gives_its_window_back() -> None:
    memory = Memory.create("nyx-test", session_columns(8))
    try:
        columns, before = memory.columns, _committed(memory)
        for row in range(8):
            columns["session_windows"][row * WINDOW_WORDS : row * WINDOW_WORDS + 600] = 1  # two pages of thirty-two
            columns["sessions"][row]["state"] = SESSION_LIVE
        assert _committed(memory) >= before + 8 * 2 * PAGE
        for row in range(8):
            wipe_session(columns, row, clear)
        assert _committed(memory) <= before + 2 * PAGE  # the rows themselves
        assert not columns["session_windows"][: 8 * WINDOW_WORDS : 512].any()
    finally:
        memory.close()


def _committed(memory: Memory) -> int:
    """Bytes that the kernel holds for a shared memory."""
    return os.fstat(memory.fd).st_blocks * 512
