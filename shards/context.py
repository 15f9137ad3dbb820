"""What one life of a worker is given: everything it needs, made by the supervisor before, and held by it after.

Nothing in here is the worker's to close. A worker that is killed finds the same memory, sockets and descriptors in its next
life: `life` counts them, and descriptors that the dead one opened are still open under the same numbers (see `sweep`).
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from nyx.columns import Columns
from nyx.config import Config
from nyx.crypto.keys import StaticKeys
from nyx.path.directory import Snapshot
from shards import poller
from shards.process import open_descriptors
from shards.seal import NO_FILTERS, Filters

Entropy = Callable[[int], bytes]


class Asked(IntEnum):
    """What a worker has been asked by a signal; the higher one wins."""

    NOTHING = 0
    REST = 1  # SIGUSR1: end, leaving everything open to the next life
    STOP = 2  # SIGTERM: close everything and end


@dataclass(slots=True)
class WorkerContext:
    """One life of one worker."""

    index: int
    workers: int
    config: Config
    keys: StaticKeys | None  # None for a client: it has no identity on links
    snapshot: Snapshot  # verified
    udp: socket.socket  # bound member of the steered group; never closed
    proxy: tuple[socket.socket, ...]  # listening, the same for all workers: register with EPOLLEXCLUSIVE; () without a proxy
    sdk: tuple[socket.socket, ...]  # listening for applications of the SDK, as `proxy`; () without
    control: socket.socket  # our end of the SEQPACKET channel from the control process; non-blocking
    columns: Columns  # this worker's own: what shards.worker.worker_columns named
    shared: Columns  # all workers': "packets", "rings", "sleeping", "builds_seen", "statistics", "node", "node_workers"
    events: tuple[int, ...]  # eventfds of all workers, for rings; events[index] is ours
    stop: int  # eventfd, readable once the worker shall end or drain
    multiplier: int  # of steering, secret
    boot_epoch: int
    boot_secret: bytes  # 32 random bytes of this boot, the same in every life and worker: keys of filters and tables
    started: int  # Unix seconds of the supervisor's start, by the clock as it is set now
    offload: bool  # whether UDP may use segmentation offload
    entropy: Entropy  # the operating system's; the worker puts a stream of its own in its place
    filters: Filters = NO_FILTERS  # of system calls
    life: int = 0  # 0, then counted up by each restart
    inherited: frozenset[int] = frozenset()  # descriptors that were open before the first life
    asked: Asked = Asked.NOTHING
    draining: bool = False  # nothing new is taken: the node is about to start anew

    def ready(self) -> None:
        """Tell the supervisor that the loop runs."""
        self.shared["node_workers"]["ready"][self.index] = os.getpid()

    def listen_to_signals(self) -> None:
        """Let SIGTERM, SIGUSR1 and SIGUSR2 make `stop` readable, and say in `asked` and `draining` what they mean."""
        poller.drain(self.stop)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._ask(Asked.STOP))
        signal.signal(signal.SIGUSR1, lambda _number, _frame: self._ask(Asked.REST))
        signal.signal(signal.SIGUSR2, lambda _number, _frame: self._drain())

    def _ask(self, what: Asked) -> None:
        self.asked = max(self.asked, what)
        poller.signal(self.stop)

    def _drain(self) -> None:
        self.draining = True
        poller.signal(self.stop)

    def sweep(self, named: Iterable[int] = ()) -> int:
        """Close what earlier lives left open and no column names (`named`); how many. First of all, before anything is opened."""
        left = open_descriptors() - self.inherited - set(named)
        for fd in left:
            os.close(fd)
        return len(left)
