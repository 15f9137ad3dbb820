"""The configuration of one worker: what it begins its life with, and the versions that it takes over while it runs.

Place on a packet's way: none; each turn compares one word of shared memory (`nyx/committed.py`) with the version that it runs.
A version is prepared on demand of the control process: parsed, its directory checked, nothing changed; a part of it each turn,
for a directory has thousands of nodes and packets go on. Once the word names it, it is taken in the next turn, whole: between two
packets of a batch nothing can differ. A worker that was not asked, for it had just been born, prepares it then. Links, circuits
and streams that stand are not touched; new ones follow the new version.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nyx.committed import Committed, Version, believe
from nyx.config import Config, from_settings
from nyx.errors import NyxError
from nyx.path.directory import Snapshot, finish
from nyx.path.policy import Policy
from shards import say
from shards.context import WorkerContext
from shards.sessions import offered_suites

if TYPE_CHECKING:
    from shards.worker import Worker

SHARE: Final = 1_000_000  # ns of a turn that a preparation may take; a step of it is a fifth

Answer = Callable[[int, str | None], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version with everything that its use needs: taking it cannot fail."""

    number: int
    digest: bytes  # of its text: another one may be staged under the same number
    config: Config
    snapshot: Snapshot
    policy: Policy | None  # an exit's


class Settings:
    """The versions as one worker sees them."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._committed = Committed(context.shared)
        self._word: Callable[[int], int] = context.shared["config_word"].item
        self._prepared: Prepared | None = None
        self._job: Generator[None, None, Prepared] | None = None
        self._wanted = 0  # the version that the job prepares
        self._digest = b""
        self.answer: Answer = lambda _number, _error: (
            None
        )  # told how a preparation ended: the version, and what was wrong or None
        self.number = 0  # the version that this worker runs; 0: the one it was started with

    @property
    def due(self) -> bool:
        """Whether another version is in force than the one that runs here."""
        return self._word(0) != self.number

    def begin(self) -> None:
        """At the start of a life: the version in force, whatever the parent's memory says."""
        if self.due:
            self._use(finish(self._make(*self._committed.current())))

    @property
    def busy(self) -> bool:
        """Whether a version is being prepared."""
        return self._job is not None

    def prepare(self, number: int) -> None:
        """Begin to make a staged version ready; `answer` tells the end. Raises NyxError where there is no such version."""
        digest = self._committed.digest(number)
        if self._job and (self._wanted, self._digest) == (number, digest):
            return  # asked again: the first answer was too late for him who waits
        self._job = self._make(*self._committed.staged(number))
        self._wanted, self._digest = number, digest

    def work(self) -> None:
        """A turn's share of the preparation."""
        job, until = self._job, time.monotonic_ns() + SHARE
        try:
            while job and time.monotonic_ns() < until:
                next(job)
        except StopIteration as end:
            self._job, self._prepared = None, end.value
            self.answer(self._wanted, None)
        except NyxError as error:
            self._job = None
            self.answer(self._wanted, str(error))

    def take(self, worker: "Worker") -> None:
        """Put the version in force to use."""
        number, ready = self._word(0), self._prepared
        if ready is None or ready.number != number or ready.digest != self._committed.digest(number):
            ready = finish(self._make(*self._committed.current()))
        self._prepared = self._job = None
        self._use(ready)
        worker.links.suites[:] = offered_suites(ready.config.suite.prefer, worker.available)
        worker.edge.client.max_clients = ready.config.proxy.max_clients
        worker.edge.sdk.max_streams = ready.config.sdk.max_streams
        if ready.policy is not None:
            worker.edge.exit.policy = ready.policy
        if worker.desk.clients:
            worker.desk.clients.on_settings()

    def _make(self, version: Version, data: bytes) -> Generator[None, None, Prepared]:
        config = from_settings(version.settings, version.origins)
        digest = bytes.fromhex(version.directory.digest)
        snapshot = self._context.snapshot
        if snapshot.digest != digest:
            snapshot = yield from believe(version, data)
        policy = Policy.parse(config.exit.policy) if config.node.role == "exit" else None
        return Prepared(version.number, self._committed.digest(version.number), config, snapshot, policy)

    def _use(self, ready: Prepared) -> None:
        self.number = ready.number
        self._context.config, self._context.snapshot = ready.config, ready.snapshot
        say.configure(ready.config.log)
