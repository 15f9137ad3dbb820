"""The memory cap: pages really go, what is queued stays whole, and who reads nothing ends before who reads."""

import itertools
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.config import load
from nyx.errors import ConfigError
from nyx.link.session import session_columns
from nyx.stats import COUNTERS, Counter
from nyx.stream.columns import DONE, FREE, LIVE, OPEN, stream_columns
from nyx.stream.engine import Streams
from shards import cap as module
from shards.cap import MIB, MOTION, OLD, SECOND, Cap
from shards.footprint import Footprint, clear, give_back, runs
from shards.memory import Memory
from shards.tables import circuit_columns

RING = 1 << 20
ROWS = 12
NOW = 1000 * SECOND


class Bench:
    """A worker's tables in real shared memory, with a cap of which the figures can be set."""

    def __init__(self) -> None:
        columns = [*stream_columns(6, ROWS, RING), *session_columns(16), *circuit_columns(16)]
        self.memory = Memory.create("test", columns)
        self.columns = self.memory.columns
        self.streams = Streams(self.columns, RING)
        self.rows = self.columns["streams"]
        self.ended: list[tuple[str, int]] = []
        self.statistics = np.zeros(len(COUNTERS), np.int64)
        limits = SimpleNamespace(limits=SimpleNamespace(memory=256))
        context: Any = SimpleNamespace(columns=self.columns, config=limits, workers=1)
        self.cap = Cap(context, self.streams, self.end_circuit, self.end_stream, self.statistics)
        self.cap._private, self.cap._measure_due = 40 * MIB, 1 << 62  # whatever this process has grown to
        self.streams._desk[14] = ROWS  # DESK_TOP: every row may be in use

    def end_circuit(self, connection: int) -> None:
        self.ended.append(("circuit", connection))
        mine = self.rows["connection"] == connection
        self.rows["failed"][mine] = 1
        self.rows["state"][mine] = DONE

    def end_stream(self, row: int, _now: int) -> None:
        self.ended.append(("stream", row))
        self.rows[row]["reset_state"] = self.rows[row]["rx_stop"] = 1

    def open(self, row: int, connection: int, tx: int = 0, rx: int = 0, base: int = 0, tail: int = 0) -> None:
        """A stream with so much queued either way, its bytes written."""
        s = self.rows[row]
        s["state"], s["born"], s["connection"] = OPEN, row + 1, connection
        s["tx_base"], s["tx_head"] = base, base + tx
        s["rx_tail"], s["rx_ready"] = tail, tail + rx
        for name, first, size in (("stream_tx", base, tx), ("stream_rx", tail, rx)):
            at = (first + np.arange(size)) & (RING - 1)
            self.columns[name][row * RING + at] = self.pattern(name, row, first, size)
        self.columns["connections"][connection]["state"] = LIVE

    @staticmethod
    def pattern(name: str, row: int, first: int, size: int) -> np.ndarray:
        return ((first + np.arange(size)) * 7 + row + len(name) * (name == "stream_tx") | 1).astype(np.uint8)

    def committed(self) -> int:
        return os.fstat(self.memory.fd).st_blocks * 512

    def check_queued(self) -> None:
        tx, rx = self.cap._queued(ROWS)
        for name, first, queued in (("stream_tx", "tx_base", tx), ("stream_rx", "rx_tail", rx)):
            for row in range(ROWS):
                start, size = int(self.rows[row][first]), int(queued[row])
                at = (start + np.arange(size)) & (RING - 1)
                assert (self.columns[name][row * RING + at] == self.pattern(name, row, start, size)).all()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_given_back_pages_are_zero_and_gone(bench: Bench) -> None:
    part = bench.columns["stream_tx"][RING : 2 * RING]
    before = bench.committed()
    part[:] = 7
    assert bench.committed() >= before + RING
    assert give_back(part[10:-10])
    assert not part[4096:-4096].any()
    assert (part[:10] == 7).all()
    assert (part[-10:] == 7).all()
    clear(part)
    assert bench.committed() == before
    assert not part.any()  # reading commits again, so last


def test_private_memory_is_cleared_all_the_same() -> None:
    part = np.full(3 * RING, 7, np.uint8)
    clear(part[5 : 2 * RING])
    assert not part[5 : 2 * RING].any()
    assert (part[2 * RING :] == 7).all()
    assert (part[:5] == 7).all()


def test_the_kernel_counts_what_is_touched(bench: Bench) -> None:
    footprint = Footprint()
    before = footprint.shared()
    bench.columns["stream_rx"][: 8 * RING] = 1
    assert 7 * MIB < footprint.shared() - before < 9 * MIB
    assert footprint.private() > 10 * MIB
    footprint.close()


@given(st.lists(st.booleans(), max_size=40))
def test_runs(marks: list[bool]) -> None:
    found = runs(np.array(marks, np.bool_))
    assert [i for first, last in found for i in range(first, last)] == [i for i, mark in enumerate(marks) if mark]
    assert all(last < following for (_, last), (following, _) in itertools.pairwise(found))


offsets = st.integers(0, 5 * RING)
sizes = st.one_of(st.just(0), st.integers(1, 20_000), st.integers(RING - 9000, RING))


@given(streams=st.lists(st.tuples(offsets, sizes, offsets, sizes), min_size=1, max_size=4))
def test_a_sweep_keeps_what_is_queued_and_little_else(streams: list[tuple[int, int, int, int]]) -> None:
    bench = Bench()
    empty = bench.committed()
    for name in ("stream_tx", "stream_rx"):
        bench.columns[name][: 5 * RING] = 9  # what older bytes left
    for row, (base, tx, tail, rx) in enumerate(streams):
        bench.open(row, row, tx, rx, base, tail)
    queued = sum(tx + rx for _, tx, _, rx in streams)
    bench.cap._sweep(ROWS)
    bench.check_queued()
    assert bench.committed() - empty <= queued + len(streams) * 2 * 3 * 4096 + 64 * 1024


def test_a_new_life_counts_what_the_last_one_queued(bench: Bench) -> None:
    bench.columns["stream_tx"][: 3 * RING] = 9
    bench.open(1, 0, RING, RING // 2)
    before = bench.committed()
    bench.cap.begin(NOW)
    assert bench.committed() <= before - 2 * RING + 64 * 1024
    bench.check_queued()


# ---------------------------------------------------------------- who ends


def press(bench: Bench, monkeypatch: pytest.MonkeyPatch, above: int, now: int) -> None:
    """A look while so much more than the room is held, beside what counts as given back."""
    room = bench.cap.room
    monkeypatch.setattr(Cap, "held", property(lambda _self: room + above))
    bench.cap.look(now)


def settle(bench: Bench, moving: set[int], seconds: float) -> int:
    """Time passes in which these rows move and the others do not; when it is now."""
    now = NOW
    while now < NOW + seconds * SECOND:
        now += SECOND // 20
        for row in moving:
            bench.rows[row]["tx_base"] += 1
            bench.rows[row]["tx_head"] += 1
        bench.cap._note_ages(now)
    return now


def test_the_oldest_byte_ends_first_and_what_moves_never(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open(0, 0, MIB)
    bench.cap._note_ages(NOW - 3 * SECOND)
    bench.open(1, 1, MIB)
    bench.cap._note_ages(NOW - 2 * SECOND)
    bench.open(2, 2, MIB)
    bench.open(3, 2, 100)
    now = settle(bench, {2}, 3)
    press(bench, monkeypatch, 1, now)
    assert bench.ended == [("circuit", 0), ("circuit", 1)]  # until 7/8 of the room: all that stands still
    assert bench.statistics[Counter.CIRCUITS_EVICTED] == 2
    assert "limits.memory = 256" in str(bench.cap.trouble(now))
    assert bench.cap.trouble(now + 61 * SECOND) is None


def test_ends_stop_as_soon_as_there_is_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in range(4):
        bench.open(row, row, RING, RING)
        bench.cap._note_ages(NOW - (10 - row) * SECOND)
    now = settle(bench, set(), 1.5)
    monkeypatch.setattr(Cap, "room", property(lambda _self: 24 * MIB))
    press(bench, monkeypatch, 1, now)  # an eighth of 24 MiB is to be freed: two circuits of 2 MiB
    assert bench.ended == [("circuit", 0), ("circuit", 1)]


def test_a_circuit_that_moves_loses_its_stalled_stream_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open(0, 0, MIB)
    bench.open(1, 0, MIB)
    now = settle(bench, {1}, 2)
    press(bench, monkeypatch, 1, now)
    assert bench.ended == [("stream", 0)]
    assert bench.statistics[Counter.STREAMS_EVICTED] == 1


def test_of_an_own_circuit_only_streams_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open(0, 0, 0, MIB)
    bench.columns["connections"][0]["client"] = 1
    now = settle(bench, set(), 2)
    press(bench, monkeypatch, 1, now)
    assert bench.ended == [("stream", 0)]


def test_what_is_small_or_young_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open(0, 0, 1000)
    now = settle(bench, set(), 2)
    bench.open(1, 1, MIB)
    bench.cap._note_ages(now)
    press(bench, monkeypatch, 50 * MIB, now + MOTION // 2)
    assert bench.ended == []


def test_a_circuit_that_hoards_ends_without_need(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in range(5):
        bench.open(row, 0 if row < 3 else 1, RING, RING)
    now = settle(bench, set(), OLD / SECOND + 0.5)
    monkeypatch.setattr(Cap, "room", property(lambda _self: 20 * MIB))
    press(bench, monkeypatch, -10 * MIB, now)
    assert bench.ended == [("circuit", 0)]


def test_nothing_ends_while_there_is_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open(0, 0, RING, RING)
    press(bench, monkeypatch, -bench.cap.room // 2, settle(bench, set(), 5))
    assert bench.ended == []
    assert int(bench.rows[0]["state"]) != FREE


# ---------------------------------------------------------------- the setting


def settings(memory: str, more: str = "") -> str:
    signer = "ab" * 32
    return f'[limits]\nmemory = {memory}\n{more}\n[directory]\nfile = "d"\nsigners = ["{signer}"]\n'


def test_the_cap_must_hold_the_processes_and_packets() -> None:
    assert load(settings("256")).limits.memory == 256
    assert load(settings('"auto"')).limits.memory == 0
    with pytest.raises(ConfigError, match="at least 164"):
        load(settings("150", "pool_packets = 16384"))
    with pytest.raises(ConfigError, match="at least 400"):
        load(settings("300", "[workers]\ncount = 4"))
    with pytest.raises(ConfigError, match="below the range"):
        load(settings("100"))


def test_auto_is_a_quarter_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "machine_memory", lambda: 8 << 30)
    assert module.cap_bytes(0) == 2 << 30
    assert module.cap_bytes(300) == 300 * MIB
