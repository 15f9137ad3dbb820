"""One stream through 1, 2, 3 and 5 hops, with raw TCP beside it in the same run.

Every process shares this machine's cores: the figures are what one machine carries in all, not what a link could. Prints
Mbps of application bytes, the ratio to raw TCP, first byte on a warm circuit, CPU-nanoseconds per application packet (1198
bytes) by role, round trips of single bytes with the CPU time of a turn, and PSS by process. `--json` prints the same as JSON.

    python -m bench.stream [--hops 1,2,3,5] [--mib 256] [--rounds 3] [--json]
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.network import Network, running_network
from nyx.wire.geometry import STREAM_DATA_MAX

_BLOCK: Final = os.urandom(1 << 20)
TRIPS: Final = 500
_TICK: Final = os.sysconf("SC_CLK_TCK")


def source() -> tuple[int, int]:
    """Fork a server that sends each connection the bytes its first 8 bytes ask for, then echoes. Returns (pid, port)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = int(listener.getsockname()[1])
    pid = os.fork()
    if pid:
        listener.close()
        return pid, port
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries a connection's process
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            with connection, contextlib.suppress(OSError, struct.error):  # who asked for more than he read, or not at all
                (left,) = struct.unpack(">Q", connection.recv(8, socket.MSG_WAITALL))
                while left:
                    left -= connection.send(_BLOCK[: min(left, len(_BLOCK))])
                while data := connection.recv(4096):
                    connection.sendall(data)
            os._exit(0)
        connection.close()


def connect(port: int, proxy: int | None, timeout: float = 60, user: str | None = None) -> socket.socket:
    """A connection to a port of 127.0.0.1, direct or by SOCKS5, as a user that isolates. Raises ConnectionError, OSError."""
    stream = socket.create_connection(("127.0.0.1", proxy or port), timeout)
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy:
            _ask_proxy(stream, port, user)
    except BaseException:
        stream.close()
        raise
    return stream


def _ask_proxy(stream: socket.socket, port: int, user: str | None) -> None:
    method = b"\x00" if user is None else b"\x02"
    stream.sendall(b"\x05\x01" + method)
    if stream.recv(2, socket.MSG_WAITALL) != b"\x05" + method:
        raise ConnectionError("the proxy closed in the greeting")
    if user is not None:
        stream.sendall(bytes((1, len(user))) + user.encode() + b"\x01-")
        if stream.recv(2, socket.MSG_WAITALL) != b"\x01\x00":
            raise ConnectionError("the proxy refused the credentials")
    stream.sendall(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack(">H", port))
    reply = stream.recv(10, socket.MSG_WAITALL)
    if len(reply) != 10 or reply[1]:
        raise ConnectionError(f"the proxy answered {reply[1:2].hex() or 'nothing'}")


def transfer(port: int, proxy: int | None, size: int) -> float:
    """Seconds from the request to the last of `size` bytes."""
    with connect(port, proxy) as stream:
        start = time.perf_counter()
        stream.sendall(struct.pack(">Q", size))
        buffer, got = bytearray(1 << 20), 0
        while got < size:
            count = stream.recv_into(buffer)
            if count == 0:
                raise RuntimeError(f"the stream ended after {got} of {size} bytes")
            got += count
        return time.perf_counter() - start


def first_byte(port: int, proxy: int | None, user: str | None = None) -> float:
    """Milliseconds from opening the connection to the first byte of the answer."""
    start = time.perf_counter()
    with connect(port, proxy, user=user) as stream:
        stream.sendall(struct.pack(">Q", 1))
        stream.recv(1)
        return 1e3 * (time.perf_counter() - start)


def round_trips(port: int, proxy: int | None, count: int) -> list[float]:
    """Microseconds for one byte to the target and back on an open stream, so many times, one after the other."""
    with connect(port, proxy) as stream:
        stream.sendall(struct.pack(">Q", 1))
        stream.recv(1)
        found = []
        for _ in range(count):
            start = time.perf_counter()
            stream.sendall(b"x")
            stream.recv(1)
            found.append(1e6 * (time.perf_counter() - start))
        return sorted(found)


# ---------------------------------------------------------------- what the processes used


def children(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
                found.extend(children(int(child)))
    return found


def processes(network: Network) -> dict[int, str]:
    """Pid -> "node role" of every process of the network."""
    found = {}
    for node in network.nodes():
        for pid in children(int(node["pid"])):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            found[pid] = f"{'client' if node['role'] == 'client' else 'relay'} {title.removeprefix('nyxd: ').split(' (')[0]}"
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def pss_kib(pid: int) -> int:
    """Proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def work_done(network: Network) -> dict[str, tuple[int, int]]:
    """Turns of the worker and nanoseconds of CPU in them so far, by node."""
    totals = {node["alias"]: network.ask("stats", alias=node["alias"])["total"] for node in network.nodes()}
    return {alias: (total["turns"], total["busy"]) for alias, total in totals.items()}


def measure_trips(network: Network, port: int) -> dict[str, Any]:
    """Round trips of single bytes, and what a worker's turn costs under them (nodes that took part)."""
    before = work_done(network)
    trips = round_trips(port, network.proxy_port, TRIPS)
    after = work_done(network)
    spent = {alias: (turns - before[alias][0], busy - before[alias][1]) for alias, (turns, busy) in after.items()}
    used = [busy / turns / 1e3 for turns, busy in spent.values() if turns > TRIPS]
    return {
        "round_trip_us": {"median": statistics.median(trips), "p99": trips[len(trips) * 99 // 100]},
        "turn_us": statistics.mean(used) if used else None,
    }


def measure(hops: int, size: int, rounds: int, port: int) -> dict[str, Any]:
    """Rounds of raw TCP and Nyx in turn over one network of this path length."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = stack.enter_context(running_network(folder / "net", "--hops", str(hops), nodes=max(4, hops) + 1))
        transfer(port, network.proxy_port, min(size, 16 << 20))
        names = processes(network)
        raw, nyx, used = [], [], dict.fromkeys(names.values(), 0.0)
        for _ in range(rounds):
            raw.append(size * 8e-6 / transfer(port, None, size))
            before = {pid: cpu_seconds(pid) for pid in names}
            nyx.append(size * 8e-6 / transfer(port, network.proxy_port, size))
            for pid, name in names.items():
                used[name] += cpu_seconds(pid) - before[pid]
        first = [first_byte(port, network.proxy_port) for _ in range(20)]
        trips = measure_trips(network, port)
        packets = rounds * size / STREAM_DATA_MAX
        memory: dict[str, list[int]] = {}
        for pid, name in names.items():
            memory.setdefault(name, []).append(pss_kib(pid))
    return {
        "hops": hops,
        "raw_tcp_mbps": statistics.median(raw),
        "nyx_mbps": statistics.median(nyx),
        "nyx_mbps_rounds": nyx,
        "ratio": statistics.median(n / r for n, r in zip(nyx, raw, strict=True)),
        "first_byte_ms": {"median": statistics.median(first), "worst": max(first)},
        **trips,
        "cpu_ns_per_packet": {name: 1e9 * seconds / packets for name, seconds in sorted(used.items())},
        "cpu_seconds_per_gb": sum(used.values()) / (rounds * size / 1e9),
        "pss_mib": {name: round(statistics.mean(v) / 1024, 1) for name, v in sorted(memory.items())},
        "pss_mib_all": round(sum(map(sum, memory.values())) / 1024, 1),
    }


def report(result: dict[str, Any]) -> None:
    """Print one path length as text."""
    first = result["first_byte_ms"]
    print(
        f"{result['hops']} hops  {result['nyx_mbps']:7.0f} Mbps  raw TCP {result['raw_tcp_mbps']:7.0f}  "
        f"ratio {result['ratio']:.3f}  first byte {first['median']:.2f} ms (worst {first['worst']:.2f})  "
        f"{result['cpu_seconds_per_gb']:.1f} CPU-s/GB  PSS {result['pss_mib_all']} MiB"
    )
    trip, turn = result["round_trip_us"], result["turn_us"]
    print(f"    round trip of a byte {trip['median']:.0f} us (p99 {trip['p99']:.0f}), a worker's turn {turn or 0:.0f} us of CPU")
    for name, cost in result["cpu_ns_per_packet"].items():
        print(f"    {name:24} {cost:8.0f} ns a packet   PSS {result['pss_mib'][name]:6.1f} MiB a process")


def main() -> None:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hops", default="1,2,3,5")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pid, port = source()
    results = []
    try:
        for hops in map(int, options.hops.split(",")):
            results.append(measure(hops, options.mib << 20, options.rounds, port))
            if not options.json:
                report(results[-1])
                sys.stdout.flush()
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.stream", "version": 1, "results": results}, indent=1))


if __name__ == "__main__":
    main()
