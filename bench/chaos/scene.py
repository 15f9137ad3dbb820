"""A chaos run: a network, a target, a tap, applications, and somebody who kills; then quiet, and what is left is judged."""

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.chaos.look import Holding, Member, counters, holding, members, memory, processes
from bench.chaos.tap import Report, RunningTap
from bench.chaos.target import Target
from bench.chaos.users import Tally, User
from bench.network import Network, running_network

HOPS: Final = 3
_SAMPLE: Final = 5.0  # seconds between two samples of memory
_STILL: Final = 4.0  # seconds without one more circuit: there are as many as there will be
_CAUSE: Final = 2.0  # seconds before a refused request in which a kill may have been its cause
_CONTROL: Final = 0.15  # of kills hit a control process
MUST_STAY_ZERO: Final = ("dropped_replayed", "dropped_too_old", "dropped_repeated_cell", "dropped_bad_tag", "dropped_bad_cell")


@dataclass
class Scene:
    """One running network with everything around it."""

    network: Network
    nodes: list[Member]
    target: Target
    tap: RunningTap | None
    rng: random.Random
    tally: Tally = field(default_factory=Tally)
    kills: Counter[str] = field(default_factory=Counter)
    disturbed: list[tuple[float, float]] = field(default_factory=list)  # begin and end of what may refuse requests
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, PSS
    stop: threading.Event = field(default_factory=threading.Event)
    before: Holding | None = None
    counted: Counter[str] = field(default_factory=Counter)
    _threads: list[threading.Thread] = field(default_factory=list)

    def user(self, rate: int = 0) -> User:
        """Another application, with dice of its own."""
        return User(self.target, self.network.proxy_port, self.tally, self.rng.getrandbits(64), self.stop, rate)

    def begin(self, *, bulk: int, mixed: int, size: int, rate: int) -> None:
        """Warm up, look, and start so many applications of each sort; bulk streams have `size` bytes at `rate` bytes a second."""
        for kind in ("download", "upload", "half_close"):
            self.user().one(kind, 1 << 20)
        self.before = settled(self.nodes, 30)
        self.counted = counters(self.nodes)
        work = [(self.user(rate).bulk, size) for _ in range(bulk)] + [(self.user().mixed, 1 << 20) for _ in range(mixed)]
        self._threads = [threading.Thread(target=live, args=(most,), daemon=True) for live, most in work]
        self._threads.append(threading.Thread(target=self._sample, daemon=True))
        for thread in self._threads:
            thread.start()

    def fill(self, patience: float) -> None:
        """Ask with new isolation keys until the client has as many circuits as it ever will."""
        until, most, risen = time.monotonic() + patience, -1, time.monotonic()
        stop = threading.Event()

        def ask(user: User) -> None:
            while not stop.is_set():
                user.one("download", 1, user.rng.randbytes(8).hex())

        threads = [threading.Thread(target=ask, args=(self.user(),), daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        while time.monotonic() < min(until, risen + _STILL):
            time.sleep(0.5)
            if (ready := holding(self.nodes).ready) > most:
                most, risen = ready, time.monotonic()
        stop.set()
        for thread in threads:
            thread.join()

    def _sample(self) -> None:
        while not self.stop.wait(_SAMPLE):
            self.memory.append((time.monotonic(), float(memory(self.nodes))))

    def kill(self) -> None:
        """Kill one process at once: a worker mostly, or a control process."""
        alive = processes(self.nodes)
        role = "control" if self.rng.random() < _CONTROL else "worker"
        pids = [pid for found, pid in alive if found == role]
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.rng.choice(pids), signal.SIGKILL)
            self.kills[role] += 1
            self.disturbed.append((time.monotonic(), time.monotonic()))

    def finish(self) -> None:
        """Let the applications end what they do."""
        self.stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def unexplained(self) -> int:
        """Refused requests without a kill (or another start of a process) shortly before or during them."""
        return sum(not any(a - _CAUSE <= end and at <= b for at, end in self.disturbed) for a, b in self.tally.refusals)


@contextlib.contextmanager
def scene(seed: int, *, capture: bool = True) -> Iterator[Scene]:
    """A network that is there for this run alone."""
    target = Target()
    with tempfile.TemporaryDirectory() as folder, running_network(Path(folder) / "net", "--workers", "2") as network:
        nodes = members(network)
        tap = RunningTap.start(network.ports, [node.pid for node in nodes]) if capture else None
        try:
            yield Scene(network, nodes, target, tap, random.Random(seed))
        finally:
            target.close()
            if tap:
                tap.abandon()


def quiet(now: Holding, before: Holding | None) -> bool:
    """Whether nothing is left of what applications did."""
    even = now.circuits == now.ready * (HOPS + 1)
    return now.streams == 0 and even and (before is None or now.descriptors <= before.descriptors)


def settled(nodes: list[Member], patience: float, before: Holding | None = None) -> Holding:
    """What the nodes hold once it is quiet, or when patience ends."""
    until = time.monotonic() + patience
    while True:
        try:
            now = holding(nodes)
        except OSError:  # a control process is being started again
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
            continue
        if quiet(now, before) or time.monotonic() > until:
            return now
        time.sleep(0.5)


def judge(scene: Scene, after: Holding, tap: Report | None, gained: Counter[str], *, pause: float) -> list[str]:
    """Everything that must not be, as sentences; empty when all is well."""
    tally, before = scene.tally, scene.before
    assert before is not None
    found = []
    for count, what in (
        (sum(tally.wrong.values()), "streams carried other bytes than were sent"),
        (sum(tally.lost.values()), "open streams were lost"),
        (tally.hung, "requests or streams hung"),
        (tally.false_ends + scene.target.false_ends, "ends of file that were none"),
        (after.streams, "streams are left"),
        (abs(after.circuits - after.ready * (HOPS + 1)), "circuit rows are left at some hop, or missing"),
        (max(0, after.descriptors - before.descriptors), "descriptors are left"),
        (tap.repeats if tap else 0, "packets were sealed under a number that was used before"),
        (tap.odd if tap else 0, "packets did not unmask"),
        *((gained[name], f"packets counted as {name}") for name in MUST_STAY_ZERO),
    ):
        if count:
            found.append(f"{count} {what}")
    longest = max(tally.pause, scene.target.pause)
    if longest >= pause:
        found.append(f"a stream paused for {longest:.2f} s")
    if not gained["repairs"]:
        found.append("no new life had anything to repair: the kills hit nothing")
    if tap and tap.packets and tap.with_key < 0.9 * tap.packets:
        found.append(f"keys were found for {tap.with_key} of {tap.packets} packets only")
    return found


def summary(scene: Scene, after: Holding, tap: Report | None, gained: Counter[str]) -> dict[str, Any]:
    """The run in numbers."""
    tally, before = scene.tally, scene.before
    assert before is not None
    return {
        "kills": dict(scene.kills),
        "streams": {
            "right": dict(tally.right), "wrong": dict(tally.wrong), "lost": dict(tally.lost), "hung": tally.hung,
            "false_ends": tally.false_ends + scene.target.false_ends,
        },
        "requests": {
            "refused_then_tried_again": dict(tally.refused), "without_a_kill_near": scene.unexplained,
            "abandoned": tally.abandoned, "longest_opening": round(tally.opening, 3),
        },
        "pause": round(max(tally.pause, scene.target.pause), 3),
        "repairs": gained["repairs"], "repaired_positions": gained["repaired_positions"],
        "tap": asdict(tap) if tap else None,
        "before": before._asdict(), "after": after._asdict(),
        "counters": {name: gained[name] for name in (*MUST_STAY_ZERO, "control_repeated", "pool_empty", "send_blocked")},
    }  # fmt: skip
