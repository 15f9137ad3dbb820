"""Workers killed between any two lines of any kernel: run uncompiled in a process of its own by test_kills.

A trace function raises at a random line inside the kernels; the next life is built over the same columns, as a restarted
worker's is. Prints one line: kills, lines of code they hit, bytes delivered.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nyx.kernel import PLAIN
from nyx.stream import columns as c
from nyx.stream import engine
from nyx.stream.engine import Streams
from tests.nyx.stream.simulator import MS, RING, End, Link, Network

KERNELS = str(Path(engine.__file__).parent)
LIVES = 30


class KilledError(BaseException):
    """SIGKILL, as far as the columns can tell."""


class Killer:
    """Counts lines while a kernel runs, and raises at the one that the dice chose."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left = self.kills = 0
        self.places: set[tuple[str, int]] = set()

    def arm(self) -> None:
        self.left = int(self.rng.expovariate(1 / 4000)) + 1 if self.kills < LIVES else 1 << 60

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(KERNELS):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.places.add((frame.f_code.co_name, frame.f_lineno))
                raise KilledError
        return self.trace

    def __call__(self, work: Callable[[], Any]) -> Any:
        sys.settrace(self.trace)
        try:
            return work()
        finally:
            sys.settrace(None)


class Killed(Network):
    """A network whose ends die now and then."""

    def __init__(self, seed: int, killer: Killer, forth: Link, back: Link) -> None:
        super().__init__(seed, forth, back)
        self.killer = killer

    def revive(self, end: End) -> None:
        self.killer.kills += 1
        end.streams = Streams(end.streams.columns, RING)
        end.streams.rebuild(self.now)
        self.killer.arm()

    def _send(self, end: End) -> None:
        try:
            self.killer(lambda: Network._send(self, end))
        except KilledError:
            self.revive(end)

    def deliver(self, end: End, cells: list[bytes]) -> int:
        try:
            return int(self.killer(lambda: Network.deliver(self, end, cells)))
        except KilledError:
            self.revive(end)
            return 0

    def tick(self, end: End) -> None:
        try:
            self.killer(lambda: end.streams.on_timeout(self.now))
        except KilledError:
            self.revive(end)


def main(seed: int, size: int = 120_000) -> None:
    assert PLAIN
    rng = random.Random(seed)
    killer = Killer(rng)
    forth, back = (Link(loss=0.02, jitter=MS, in_order=False) for _ in range(2))
    net = Killed(seed, killer, forth, back)
    killer.arm()
    rows = [net.open(port=80 + i) for i in range(3)]
    data = {row: (rng.randbytes(size), rng.randbytes(size)) for row in rows}
    for row in rows:
        net.write(net.client, row, data[row][0])
        net.client.streams.finish(row)
    answered: set[int] = set()

    def over() -> bool:
        for row in rows:
            number = net.client.ids[row]
            for peer in [r for r, i in net.exit.ids.items() if i == number and r not in answered]:
                net.write(net.exit, peer, data[row][1])
                net.exit.streams.finish(peer)
                answered.add(peer)
        return len(answered) == len(rows) and set(rows) <= net.client.ended and answered <= net.exit.ended

    assert net.run(over, limit=20_000), "streams do not end"
    for row in rows:
        assert bytes(net.client.read[row]) == data[row][1]
        assert bytes(net.exit.read[net.peer_row(net.client, row)]) == data[row][0]
    for end in (net.client, net.exit):
        for row in list(end.ids):
            end.streams.release(row)
        assert end.streams.free_rows == len(end.streams.streams), "rows leak"
        assert not end.streams.bits_set(), "bits leak"
        assert int(end.streams.connections[end.connection]["state"]) == c.LIVE
    sys.stdout.write(f"{killer.kills} {len(killer.places)} {2 * size * len(rows)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
