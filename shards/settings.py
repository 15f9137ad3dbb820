"""The configuration of one worker: what it begins its life with, and the versions that it takes over while it runs.

Place on a packet's way: none; each turn compares one word of shared memory (`nyx/committed.py`) with the version that it runs.
A version is prepared on demand of the control process: parsed, its directory checked, nothing changed. Once the word names it,
it is taken in the next turn, whole: between two packets of a batch nothing can differ. A worker that was not asked, for it had
just been born, prepares it then. Links, circuits and streams that stand are not touched; new ones follow the new version.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nyx.committed import Committed, Version, believe
from nyx.config import Config, from_settings
from nyx.path.directory import Snapshot
from nyx.path.policy import Policy
from shards import say
from shards.context import WorkerContext
from shards.sessions import offered_suites

if TYPE_CHECKING:
    from shards.worker import Worker


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
        self.number = 0  # the version that this worker runs; 0: the one it was started with

    @property
    def due(self) -> bool:
        """Whether another version is in force than the one that runs here."""
        return self._word(0) != self.number

    def begin(self) -> None:
        """At the start of a life: the version in force, whatever the parent's memory says."""
        if self.due:
            self._use(self._make(*self._committed.current()))

    def prepare(self, number: int) -> None:
        """Make a staged version ready. Raises NyxError, and the version in force stays."""
        ready = self._prepared
        if ready is None or ready.number != number or ready.digest != self._committed.digest(number):
            self._prepared = None
            self._prepared = self._make(*self._committed.staged(number))

    def take(self, worker: "Worker") -> None:
        """Put the version in force to use."""
        number, ready = self._word(0), self._prepared
        if ready is None or ready.number != number or ready.digest != self._committed.digest(number):
            ready = self._make(*self._committed.current())
        self._prepared = None
        self._use(ready)
        worker.links.suites[:] = offered_suites(ready.config.suite.prefer, worker.available)
        worker.edge.client.max_clients = ready.config.proxy.max_clients
        worker.edge.sdk.max_streams = ready.config.sdk.max_streams
        if ready.policy is not None:
            worker.edge.exit.policy = ready.policy
        if worker.desk.clients:
            worker.desk.clients.on_settings()

    def _make(self, version: Version, data: bytes) -> Prepared:
        config = from_settings(version.settings, version.origins)
        digest = bytes.fromhex(version.directory.digest)
        snapshot = self._context.snapshot if self._context.snapshot.digest == digest else believe(version, data)
        policy = Policy.parse(config.exit.policy) if config.node.role == "exit" else None
        return Prepared(version.number, self._committed.digest(version.number), config, snapshot, policy)

    def _use(self, ready: Prepared) -> None:
        self.number = ready.number
        self._context.config, self._context.snapshot = ready.config, ready.snapshot
        say.configure(ready.config.log)
