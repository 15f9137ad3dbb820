"""Claim: being able to lose a worker at any store costs less than 3 % of a packet's work.

    python bench/recovery.py [--rounds 7] [--json]

The same kernels, once as they are and once without what makes a kill harmless: with plain stores and loads in place of release,
acquire and fences, compiled to a cache of their own, and over private memory in place of a shared memfd. Processes of both sorts
take turns; a step's figure in a process is the least of many batches, here stand medians over the processes. Steps: all that a
relay does to a packet (bench.crypto), a cell written, read and acknowledged (bench.streams), and a packet's bytes from a socket
into a ring and from a ring into a socket. `path` is three relays, one stream and both ends' sockets together.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.network import ROOT, command_environment

SORTS: Final = ("with", "without")
_BLOCK: Final = 1 << 15  # bytes a call moves
_CALLS: Final = 400


def plain_commits() -> None:
    """Replace the atomics of kernels by plain loads and stores, before any kernel is imported."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    from nyx import kernel

    def pointer(builder: Any, value: Any) -> Any:
        return builder.inttoptr(value, ir.IntType(64).as_pointer())

    @intrinsic  # type: ignore[misc]
    def load(_context: Any, at: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        return types.int64(types.int64), lambda _c, builder, _s, args: builder.load(pointer(builder, args[0]), align=8)

    @intrinsic  # type: ignore[misc]
    def store(_context: Any, at: Any, value: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
            builder.store(args[1], pointer(builder, args[0]), align=8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @intrinsic  # type: ignore[misc]
    def nothing(_context: Any) -> Any:
        return types.void(), lambda context, _b, _s, _a: context.get_dummy_value()

    kernel.load_acquire, kernel.store_release, kernel.fence = load, store, nothing


def shared(columns: Sequence[Any]) -> dict[str, Any]:
    """Columns as a worker has them: in a memfd."""
    from shards.memory import Memory

    return Memory.create("nyx-bench", columns).columns


def tcp(columns_of: Callable[[Any], Any]) -> float:
    """Least ns for the bytes of a packet, in and out of a socket together."""
    import numpy as np

    from nyx.columns import Column
    from nyx.stream.columns import STREAM
    from nyx.wire.geometry import STREAM_DATA_MAX
    from shards.kernels.tcp import attach, pump_in, pump_out

    ring, byte = 1 << 20, np.dtype(np.uint8)
    columns = columns_of([Column("streams", STREAM, 1), Column("tx", byte, ring), Column("rx", byte, ring)])
    rows, row = columns["streams"], columns["streams"][0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        app = socket.create_connection(server.getsockname())
        sock, _ = server.accept()
    with app, sock:
        if not attach(rows, 0, sock.fileno()):
            raise SystemExit("the socket is dead")
        work, results, best = np.zeros(1, np.int64), np.zeros(1, np.int64), float("inf")
        for _ in range(_CALLS):
            app.sendall(bytes(_BLOCK))
            row["rx_ready"] += _BLOCK
            start = time.thread_time_ns()
            moved = pump_in(work, 1, rows, columns["tx"], ring, results) + pump_out(work, 1, rows, columns["rx"], ring, results)
            best = min(best, (time.thread_time_ns() - start) / max(1, moved // 2))
            row["tx_base"] = row["tx_head"]
            app.recv(_BLOCK, socket.MSG_WAITALL)
    return best * STREAM_DATA_MAX


def child(sort: str) -> dict[str, float]:
    """One process's figures, ns."""
    if sort == "without":
        plain_commits()
    from bench import crypto, streams
    from nyx.columns import allocate
    from nyx.crypto.suites import SUITE_AEGIS128L

    columns_of: Callable[[Any], Any] = shared if sort == "with" else allocate
    crypto.allocate = streams.allocate = columns_of  # type: ignore[attr-defined]
    bench = crypto.Bench(SUITE_AEGIS128L)
    relay = crypto.best(bench.relay, 1500, bench.seal)
    stream = min(streams.measure(0.0, 16 << 20, 96, 192)["total"] for _ in range(6))
    ends = tcp(columns_of)
    return {"relay": relay, "stream": stream, "tcp": ends, "path": 3 * relay + stream + ends}


def start(sort: str) -> dict[str, float]:
    """A process of this sort."""
    environment = command_environment()
    if sort == "without":
        base = Path(environment.get("NYX_CACHE_DIR") or environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        environment["NYX_CACHE_DIR"] = str(base / "nyx-without-commits")
        Path(environment["NYX_CACHE_DIR"]).mkdir(mode=0o755, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench.recovery", "--child", sort]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def main() -> int:
    """Measure and print; ends with 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=SORTS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return 0
    found: dict[str, list[dict[str, float]]] = {sort: [] for sort in SORTS}
    for number in range(options.rounds):
        for sort in SORTS if number % 2 else reversed(SORTS):
            found[sort].append(start(sort))
    steps = list(found["with"][0])
    medians = {sort: {step: statistics.median(run[step] for run in runs) for step in steps} for sort, runs in found.items()}
    cost = {step: medians["with"][step] / medians["without"][step] - 1 for step in steps}
    if options.json:
        report = {"schema": "nyx.bench.recovery", "version": 1, "unit": "ns a packet", "rounds": options.rounds}
        print(json.dumps(report | {"medians": medians, "cost": cost}))
        return 0
    print(f"{'step':10}{'with':>10}{'without':>10}{'cost':>9}   ns a packet, medians of {options.rounds} processes of each sort")
    for step in steps:
        print(f"{step:10}{medians['with'][step]:10.1f}{medians['without'][step]:10.1f}{cost[step]:9.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
