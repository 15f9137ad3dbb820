"""Any order of calls, on any network: the invariants hold after each step, and what was written arrives."""

import contextlib
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nyx.errors import LocalProtocolError
from nyx.stream import columns as c
from tests.nyx.stream.simulator import MS, SECOND, End, Link, Network

ENDS = st.sampled_from(["client", "exit"])


class Machine(RuleBasedStateMachine):
    """Two applications that do as they like, a network that does what networks do, and processes that are killed."""

    @initialize(seed=st.integers(0, 1 << 30), delay=st.integers(0, 30), ordered=st.booleans(), streams=st.sampled_from([4, 16]))
    def begin(self, seed: int, delay: int, ordered: bool, streams: int) -> None:
        self.rng = random.Random(seed)
        forth, back = (Link(delay=delay * MS + 50_000, in_order=ordered) for _ in range(2))
        self.net = Network(seed, forth, back, streams=streams, cells=200)
        self.finished: set[tuple[str, int]] = set()
        self.broken: set[int] = set()  # stream ids that somebody gave up
        self.kills = 0

    def rows(self, end: End) -> list[int]:
        rows = end.streams.streams
        return [r for r in end.ids if int(rows[r]["state"]) in (c.OPENING, c.OPEN) and int(rows[r]["id"]) == end.ids[r]]

    def pick(self, name: str) -> tuple[End, int] | None:
        end: End = getattr(self.net, name)
        rows = [r for r in self.rows(end) if not int(end.streams.streams[r]["released"])]
        return (end, self.rng.choice(rows)) if rows else None

    @rule()
    def open(self) -> None:
        with contextlib.suppress(LocalProtocolError):
            self.net.open()

    @rule(name=ENDS, size=st.sampled_from([1, 100, 1198, 5000, 60_000]))
    def write(self, name: str, size: int) -> None:
        found = self.pick(name)
        if found and (name, found[0].ids[found[1]]) not in self.finished:
            self.net.write(found[0], found[1], self.rng.randbytes(size))

    @rule(name=ENDS)
    def finish(self, name: str) -> None:
        found = self.pick(name)
        if found:
            found[0].streams.finish(found[1])
            self.finished.add((name, found[0].ids[found[1]]))

    @rule(name=ENDS, how=st.sampled_from(["reset", "stop", "release"]))
    def give_up(self, name: str, how: str) -> None:
        found = self.pick(name)
        if found:
            end, row = found
            self.broken.add(end.ids[row])
            if how == "release":
                end.streams.release(row)
            else:
                getattr(end.streams, how)(row, 0x100)
            self.finished.add((name, end.ids[row]))

    @rule(
        name=ENDS,
        loss=st.sampled_from([0.0, 0.02, 0.3]),
        jitter=st.sampled_from([0, 4 * MS]),
        duplicate=st.sampled_from([0, 0.1]),
    )
    def weather(self, name: str, loss: float, jitter: int, duplicate: float) -> None:
        link = getattr(self.net, name).link
        link.loss, link.jitter, link.duplicate = loss, jitter, duplicate

    @rule(name=ENDS, reading=st.booleans())
    def read(self, name: str, reading: bool) -> None:
        getattr(self.net, name).reading = reading

    @rule(steps=st.integers(1, 60))
    def go(self, steps: int) -> None:
        self.net.run(limit=steps)

    @precondition(lambda self: self.kills < 3)
    @rule(name=ENDS)
    def kill(self, name: str) -> None:
        """The process between two kernels is gone; another works on the same columns."""
        self.kills += 1
        getattr(self.net, name).streams.rebuild(self.net.now)

    @invariant()
    def what_was_read_was_written(self) -> None:
        if not hasattr(self, "net"):
            return
        self.net.check_read()

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        net = self.net
        assert not net.client.closed
        assert not net.exit.closed
        for end in (net.client, net.exit):
            end.link.loss = end.link.jitter = end.link.duplicate = 0
            end.reading = True
        net.run(seconds=1, limit=2000)
        for end in (net.client, net.exit):
            for row in self.rows(end):
                end.streams.finish(row)
        over = lambda: not self.rows(net.client) and not self.rows(net.exit)  # noqa: E731
        assert net.run(over, limit=6000), ([*self.rows(net.client)], [*self.rows(net.exit)])
        net.check_complete(self.broken)
        for end in (net.client, net.exit):
            for row in end.ids:
                if int(end.streams.streams[row]["state"]) == c.DONE:
                    end.streams.release(row)
        net.run(seconds=2, limit=500)
        assert net.now < 4000 * SECOND
        assert net.client.streams.free_rows == len(net.client.streams.streams)
        assert net.exit.streams.free_rows == len(net.exit.streams.streams)
        for end in (net.client, net.exit):
            connection = end.streams.connections[end.connection]
            assert int(connection["consumed"]) == int(connection["data_in"])
            assert not end.streams.bits_set()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40)
