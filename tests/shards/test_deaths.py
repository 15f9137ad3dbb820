"""A worker killed before every store into memory that outlives it, and between every two kernel calls of a batch.

Whole nodes without sockets make links, build a circuit, carry a stream both ways and end; one of them dies at a chosen line and
begins its next life on the same columns. Afterwards every derived structure agrees with the rows, the stream has every byte, no
packet number was used twice, no window met a number again, and nothing is left when all is closed.
"""

import ast
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from bench.chaos.tap import Tap
from nyx.link.session import SESSION_HELD
from nyx.stream import columns as c
from nyx.stream.inspect import check_invariants
from nyx.wire.codes import Drop
from shards import batch, circuits, clients, desk, hops, links, outbox, ratchet, refresh, sessions
from tests.shards.small_network import MS, RING, SECOND, Network, SmallNode

MODULES = (batch, circuits, clients, desk, hops, links, outbox, ratchet, refresh, sessions)
FILES = [Path(str(module.__file__)) for module in MODULES]
FILES += [FILES[0].parents[1] / "nyx" / name for name in ("link/channel.py", "link/session.py", "onion/seen.py")]
KERNELS = {
    "find_sessions", "open_packets", "sort_packets", "process_cells", "wrap_cells", "group_by_session", "seal_packets", "send",
    "give", "take", "wipe_session", "receive", "move_circuits", "forget_epochs", "mend_epochs", "drop_fresh",
    "taken_over",
}  # fmt: skip
MORE = random.Random(3).randbytes(5_000)
UP, DOWN = random.Random(1).randbytes(30_000), random.Random(2).randbytes(20_000)

Place = tuple[str, int]


def places() -> set[Place]:
    """Every line that stores an element of something, or calls a kernel."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            stores = any(isinstance(target, ast.Subscript) for target in flat)
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if stores or name in KERNELS:
                found.add((str(file), node.lineno))  # type: ignore[attr-defined]
    return found


PLACES = places()
_FILES = {file for file, _ in PLACES}


class KilledError(BaseException):
    """SIGKILL, as far as the columns can tell."""


class Executioner:
    """Watches one node's turns: counts how often each place is reached, and kills at the chosen one's chosen time."""

    def __init__(self, place: Place | None = None, time: int = 0) -> None:
        self.place, self.time = place, time
        self.reached: Counter[Place] = Counter()
        self.killed = False

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in _FILES:
            return None
        if event == "line":
            at = (frame.f_code.co_filename, frame.f_lineno)
            if at in PLACES:
                self.reached[at] += 1
                if at == self.place and self.reached[at] == self.time and not self.killed:
                    self.killed = True
                    raise KilledError
        return self.trace

    def around(self, work: Callable[[], None]) -> None:
        sys.settrace(self.trace)
        try:
            work()
        finally:
            sys.settrace(None)


class Keys:
    """Mask keys of all sessions that ever were, by CID."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.found: dict[bytes, bytes] = {}

    def look(self) -> None:
        for node in self.net.nodes.values():
            rows = node.columns["sessions"]
            for row in rows[rows["state"] > SESSION_HELD]:
                self.found[row["local_cid"].tobytes()] = row["receive_mask"].tobytes()
                self.found[row["peer_cid"].tobytes()] = row["send_mask"].tobytes()


class Story:
    """What happens to a network, whoever dies in it: the steps repeat until they have worked."""

    def __init__(self, folder: Path, victim: str, executioner: Executioner) -> None:
        self.net = net = Network(random.Random(5), folder, ahead=1)
        self.victim = {"client": net.clients[0], "first": net.relays[0], "second": net.relays[1], "last": net.relays[2]}[victim]
        self.executioner = executioner
        self.keys: Any = Keys(net)
        self.drops: Counter[int] = Counter()
        self.client = net.clients[0]
        self.row = -1
        self._ticks = 0
        turn = self.victim.turn

        def mortal(now: int, wall: int) -> None:
            try:
                executioner.around(lambda: turn(now, wall))
            except KilledError:
                self.keys.look()
                self._note(self.victim)
                self.victim.restart()
                check(self.victim)

        self.victim.turn = mortal  # type: ignore[method-assign]

    def _note(self, node: SmallNode) -> None:
        for code in (Drop.REPLAYED, Drop.TOO_OLD, Drop.REPEATED_CELL, Drop.BAD_TAG, Drop.BAD_CELL, Drop.OLD_EPOCH):
            self.drops[code] += node.drops(code)

    def until(self, done: Callable[[], bool], seconds: float, step: int = 5 * MS) -> None:
        end = self.net.now + int(seconds * SECOND)
        while not done():
            assert self.net.now < end, "it does not happen"
            self.net.tick(step)
            self._answer()
            self._ticks += 1
            if self._ticks % 10 == 0:
                self.keys.look()

    def _answer(self) -> None:
        """The last hop's application: takes every stream, and sends."""
        for node in self.net.relays:
            rows = node.columns["streams"]
            for row in np.flatnonzero((rows["state"] == c.OPENING) & (rows["result"] == 0)).tolist():
                node.streams.answer_open(row, 0)
                write(node, row, DOWN)

    def _open(self) -> bool:
        """The client's application, once there is a circuit."""
        circuits_ = self.client.desk.clients
        assert circuits_ is not None
        connection = circuits_.connection_for(b"key", self.net.now)
        if connection is None:
            return False
        self.row = self.client.streams.open_stream(connection, 1, "a.example", 80, self.net.now)
        write(self.client, self.row, UP)
        return True

    def _whole(self) -> bool:
        rows = [(node, row) for node in self.net.relays for row in np.flatnonzero(node.columns["streams"]["state"]).tolist()]
        arrived = [read(node, row) for node, row in rows]
        return read(self.client, self.row) == DOWN and UP in arrived

    def _lives(self) -> bool:
        return int(self.client.columns["streams"][self.row]["state"]) == c.OPEN

    def _more(self) -> bool:
        if not self._lives():  # a link that was lost while it was being made ends with its circuits, later
            return True
        rows = [(node, row) for node in self.net.relays for row in np.flatnonzero(node.columns["streams"]["state"]).tolist()]
        return UP + MORE in [read(node, row) for node, row in rows]

    def _gone(self) -> bool:
        nodes = [self.client, *self.net.relays]
        return not any(node.columns["circuits"]["state"].any() or node.columns["streams"]["state"].any() for node in nodes)

    def _end(self) -> None:
        assert self.client.desk.clients is not None
        self.client.path.circuits_ahead = 0
        for circuit in self.client.desk.clients.all:
            self.client.desk.clients.close(circuit, 0)  # type: ignore[arg-type]
        for node in [self.client, *self.net.relays]:
            for row in np.flatnonzero(node.columns["streams"]["state"]).tolist():
                node.streams.reset(row, 0)
                node.streams.release(row)

    def tell(self) -> None:
        self.until(self._open, 20)
        self.until(self._whole, 5)
        self.net.run(66, SECOND // 4)  # sessions of the key exchange end, two layer epochs begin, a refresh takes over
        if self._lives():
            write(self.client, self.row, UP + MORE)
            self.client.streams.moved(np.array([self.row], np.int64), 1)
            self.until(self._more, 5)
        self._end()
        self.net.run(0.3)
        if not self._gone():  # the word of the end died with the victim: silence ends the rest
            self._end()
            self.until(self._gone, 200, SECOND // 4)
        self.net.run(0.2)
        self.keys.look()
        nodes = [self.client, *self.net.relays]
        for node in nodes:
            self._note(node)
            check(node)
            assert node.pool.free_count == node.pool.count, "packet slots are left"
        assert not +self.drops, {Drop(code).name: count for code, count in self.drops.items()}
        tap = Tap(self.keys)
        for flying in self.net.log:
            tap.take(np.frombuffer(flying.packet, np.uint8))
        report = tap.finish()
        assert report.with_key > 100
        assert (report.repeats, report.odd) == (0, 0)


def write(node: SmallNode, row: int, data: bytes) -> None:
    node.streams.tx[row * RING : row * RING + len(data)] = np.frombuffer(data, np.uint8)
    node.streams.streams[row]["tx_head"] = len(data)


def read(node: SmallNode, row: int) -> bytes:
    return node.streams.rx[row * RING : row * RING + int(node.streams.streams[row]["rx_ready"])].tobytes()


def check(node: SmallNode) -> None:
    """Everything derived agrees with the rows."""
    node.pool.check_invariants()
    node.session_rows.check_invariants()
    node.rows.check_invariants()
    check_invariants(node.streams)
    if node.desk.clients:
        node.desk.clients.check_invariants()
    for link in node.links.all():
        for channel in link.channels.values():
            channel.check_invariants()


def cases() -> Iterator[Any]:
    """One for each part of a node's code, so that what fails is named."""
    for file in FILES:
        yield pytest.param(str(file), id=f"{file.parent.name}-{file.stem}")


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """How often each victim reaches each place in a story without a death."""
    found: dict[Place, dict[str, int]] = defaultdict(dict)
    for victim in ("client", "first", "second", "last"):
        watcher = Executioner()
        Story(tmp_path_factory.mktemp(victim), victim, watcher).tell()
        for place, times in watcher.reached.items():
            found[place][victim] = times
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", list(cases()))
def test_a_death_before_every_store(file, reached, rng, tmp_path):
    here = sorted(place for place in reached if place[0] == file)
    assert here, "no store of this file is reached"
    for number, place in enumerate(here):
        victim, times = rng.choice(sorted(reached[place].items()))
        executioner = Executioner(place, rng.choice([1, rng.randint(1, times)]))
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            Story(folder, victim, executioner).tell()
        except BaseException as error:
            error.add_note(f"{victim} killed at {place[0]}:{place[1]}, time {executioner.time}")
            raise
        assert executioner.killed
