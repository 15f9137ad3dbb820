"""Claim: a pair of sockets for each worker carries orders at less cost than a ZeroMQ bus.

    python -m bench.bus [--workers 4] [--orders 3000] [--rounds 5] [--json]

Processes that wait in an epoll set, as a worker does, take an order of a reload's size and answer it: over a SOCK_SEQPACKET pair
each, and as DEALERs of a ROUTER over a unix socket. The two take turns in one run. Prints the time until all have answered, the
processor time of one order in a worker, and what the transport adds to a worker: threads, memory and time to begin.
"""

import argparse
import json
import os
import select
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from bench.stream import pss_kib

ORDER: Final = {"op": "prepare", "id": 1, "args": {"version": 7, "settings": {f"section.key{n}": n for n in range(60)}}}
_WARM: Final = 100

Ask = Callable[[bytes], None]


class Way:
    """One transport with its workers: `ask` sends an order to all and waits for all answers."""

    def __init__(self, name: str, pids: Sequence[int], ask: Ask, close: Callable[[], None]) -> None:
        self.name, self.pids, self.ask, self._close = name, list(pids), ask, close

    def ran(self) -> int:
        """Nanoseconds on a core of all workers' threads so far."""
        return sum(
            int((task / "schedstat").read_text().split()[0]) for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir()
        )

    def threads(self) -> float:
        """Threads of a worker."""
        return statistics.mean(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self.pids)

    def pss_mib(self) -> float:
        """Memory of a worker."""
        return statistics.mean(pss_kib(pid) / 1024 for pid in self.pids)

    def close(self) -> None:
        """End the workers."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._close()


def _fork(serve: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            serve()
        finally:
            os._exit(1)
    return pid


def _answer(order: bytes) -> bytes:
    """What a worker does with an order: read it, and say that it is done."""
    return orjson.dumps({"id": orjson.loads(order)["id"], "data": {"config": 7}})


def pairs(workers: int) -> Way:
    """A SOCK_SEQPACKET pair for each worker."""
    ours, pids = [], []
    for _ in range(workers):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve(theirs: socket.socket = theirs) -> None:
            epoll = select.epoll()
            epoll.register(theirs, select.EPOLLIN)
            while True:
                epoll.poll()
                theirs.send(_answer(theirs.recv(1 << 16)))

        pids.append(_fork(serve))
        theirs.close()
        ours.append(mine)

    def ask(order: bytes) -> None:
        for mine in ours:
            mine.send(order)
        for mine in ours:
            mine.recv(1 << 16)

    def close() -> None:
        for mine in ours:
            mine.close()

    return Way("pairs", pids, ask, close)


def bus(workers: int, folder: Path) -> Way:
    """A ROUTER in the control process, a DEALER in each worker, made after the fork."""
    path = f"ipc://{folder / 'bus'}"

    def serve() -> None:
        import zmq

        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.connect(path)
        dealer.send(b"here")
        epoll = select.epoll()
        epoll.register(dealer.fileno(), select.EPOLLIN)
        while True:  # its descriptor tells of changes alone, so what waits is asked for until there is nothing
            while dealer.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                dealer.send(_answer(dealer.recv()))
            epoll.poll()

    pids = [_fork(serve) for _ in range(workers)]
    import zmq

    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(path)
    names = [router.recv_multipart()[0] for _ in range(workers)]

    def ask(order: bytes) -> None:
        for name in names:
            router.send_multipart([name, order])
        for _ in names:
            router.recv_multipart()

    def close() -> None:
        router.close(0)
        context.term()

    return Way("zeromq", pids, ask, close)


def measure(way: Way, orders: int) -> dict[str, float]:
    """One round."""
    order = orjson.dumps(ORDER)
    for _ in range(_WARM):
        way.ask(order)
    times, before = [], way.ran()
    for _ in range(orders):
        start = time.perf_counter_ns()
        way.ask(order)
        times.append(time.perf_counter_ns() - start)
    used = (way.ran() - before) / orders / len(way.pids)
    times.sort()
    return {"p50_us": times[orders // 2] / 1e3, "p99_us": times[orders * 99 // 100] / 1e3, "worker_us": used / 1e3}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ways = [pairs(options.workers)]
        ways[0].ask(orjson.dumps(ORDER))
        starts = [time.perf_counter() - began]
        began = time.perf_counter()
        ways.append(bus(options.workers, Path(folder)))
        starts.append(time.perf_counter() - began)
        try:
            rounds = [[measure(way, options.orders) for way in ways] for _ in range(options.rounds)]
            return {
                way.name: {name: statistics.median(row[at][name] for row in rounds) for name in rounds[0][at]}
                | {"threads": way.threads(), "pss_mib": way.pss_mib(), "start_ms": 1e3 * starts[at]}
                for at, way in enumerate(ways)
            }
        finally:
            for way in ways:
                way.close()


def main() -> int:
    """Measure and print; ends with 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--orders", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.bus", "version": 1, "workers": options.workers, **result}))
        return 0
    for name, row in result.items():
        print(
            f"{name:7} all {options.workers} answered in {row['p50_us']:.0f} us (p99 {row['p99_us']:.0f}); an order costs a "
            f"worker {row['worker_us']:.0f} us; it has {row['threads']:.0f} threads and {row['pss_mib']:.1f} MiB; "
            f"began in {row['start_ms']:.0f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
