"""What relays of this machine carry: real nodes between a sender and a sink that speak the protocol from outside.

    python -m bench.throughput [--workers 1,2] [--suites aegis128l,chacha20poly1305] [--circuits 1,8] [--hops 1]
                               [--packets 400000] [--json] [--plot out.svg]

Each row is a test network of its own: so many relays in a line, a sender that built circuits through them, and a sink in the
place of their last hop; both hold real links, keys and circuits (`bench.load`). A row measures what passes with as many packets
in flight as the socket buffer holds, then latencies at 10, 50 and 90 % of that, each packet timed from the moment at which it
was due. CPU is that of the relays' workers. Raw UDP is measured in the same run: sendmmsg and recvmmsg, the same with
segmentation offload, and `iperf3 -u` where it is installed. Beside each row stand the receive buffer as granted, time that the
host took (steal) and CPU of processes that are not ours, as parts of all cores' time.

Sender and sink get cores of their own where there are enough; `apart` says so. Where they share cores with the relays, only
CPU-ns a packet says what a relay can do. A run ends by itself: each phase has its deadline.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench import crypto, udp
from bench.chaos.look import family
from bench.load import LOADS, MOST, Load, spare_cores
from bench.load.plot import bars
from bench.network import Network, running_network
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.wire.geometry import PACKET_SIZE

SUITES: Final = {"aegis128l": SUITE_AEGIS128L, "chacha20poly1305": SUITE_CHACHA}
STEPS: Final = ("open", "filter", "layer", "seal")  # of a relay's cryptography, in the order of a packet's way
IPERF_LIMIT: Final = 30.0  # seconds beyond the run
_TICK: Final = os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- the machine


def cpu_times(pids: list[int]) -> tuple[float, float]:
    """User and system seconds of these processes so far."""
    user = system = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        user, system = user + int(fields[11]) / _TICK, system + int(fields[12]) / _TICK
    return user, system


def ran(pids: list[int]) -> int:
    """Nanoseconds on a core so far, of processes with one thread."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)


def machine_times() -> dict[str, float]:
    """Seconds of all cores so far: in processes, taken by the host, and all."""
    words = [int(w) / _TICK for w in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, interrupt, soft, steal = words
    return {"busy": user + nice + system + interrupt + soft, "steal": steal, "all": sum(words)}


def memory_of(pids: list[int]) -> dict[str, int]:
    """KiB by what the kernel says: proportional share, locked, and in huge pages."""
    found = {"pss": 0, "locked": 0, "huge": 0}
    names = {"Pss:": "pss", "Locked:": "locked", "AnonHugePages:": "huge", "ShmemPmdMapped:": "huge", "FilePmdMapped:": "huge"}
    for pid in pids:
        with contextlib.suppress(OSError):  # ended, or its memory is not ours to read
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                word = line.split()
                if word[0] in names:
                    found[names[word[0]]] += int(word[1])
    return found


class Beside:
    """What the machine did beside our own processes while a row was measured."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._before, self._ours = machine_times(), self._own()

    def _own(self) -> float:
        return sum(cpu_times(self._pids))

    def read(self) -> dict[str, float]:
        """Steal and other processes, as parts of all cores' time since the start."""
        after = {name: value - self._before[name] for name, value in machine_times().items()}
        whole = max(after["all"], 1e-9)
        others = max(0.0, after["busy"] - (self._own() - self._ours))
        return {"steal": round(after["steal"] / whole, 3), "others": round(others / whole, 3)}


# ---------------------------------------------------------------- raw UDP


def raw_udp(seconds: float) -> list[dict[str, Any]]:
    """Packets of 1280 bytes between two processes, with nothing done to them."""
    options = argparse.Namespace(ipv6=False, buffer=0, seconds=seconds, window=960)
    found = [udp.measure(mode, options) for mode in ("plain", "offload")]
    return [*found, *iperf(seconds)]


def iperf(seconds: float) -> list[dict[str, Any]]:
    """`iperf3 -u` at full speed; nothing where it is not installed or fails."""
    command = shutil.which("iperf3")
    if not command:
        return []
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([command, "-s", "-1", "-B", "127.0.0.1", "-p", port], **quiet) as server:  # type: ignore[call-overload]
        try:
            time.sleep(0.5)  # iperf3 says nothing when it listens
            arguments = [
                "-c",
                "127.0.0.1",
                "-p",
                port,
                "-u",
                "-b",
                "0",
                "-l",
                str(PACKET_SIZE),
                "-t",
                str(max(1, round(seconds))),
            ]
            run = subprocess.run(
                [command, *arguments, "-J"], capture_output=True, text=True, timeout=seconds + IPERF_LIMIT, check=False
            )
            total = json.loads(run.stdout)["end"]["sum"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return []
        finally:
            server.terminate()
    passed = total["packets"] - total["lost_packets"]
    return [{
        "mode": "iperf3", "packets_per_second": round(passed / total["seconds"]), "lost": total["lost_packets"],
        "gbps": round(passed * PACKET_SIZE * 8e-9 / total["seconds"], 3),
    }]  # fmt: skip


# ---------------------------------------------------------------- one row


@contextlib.contextmanager
def relays(hops: int, workers: int, suite: str) -> Iterator[tuple[Network, list[int]]]:
    """A test network whose client and two exits have made room for ours; the relays' processes."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--hops", str(hops + 1), "--workers", str(workers), "--set", f"suite.prefer={suite}")
        with running_network(Path(folder) / "net", *options, nodes=hops + 3) as network:
            kept = []
            for node in network.nodes():
                if node["alias"].startswith("relay-"):
                    kept += family(int(node["pid"]))
                else:
                    _end(int(node["pid"]))
            yield network, kept


def _end(pid: int) -> None:
    pids = family(pid)
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{one}/fd").exists() for one in pids) and time.monotonic() < end:
        time.sleep(0.05)


def workers_of(pids: list[int]) -> list[int]:
    """Those of the processes that are workers."""
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"nyxd: worker")]


def measure(hops: int, workers: int, suite: str, circuits: int, packets: int, steps: dict[str, float]) -> dict[str, Any]:
    """One row."""
    with relays(hops, workers, suite) as (network, pids), Load(network, SUITES[suite], circuits, hops + 1, workers) as load:
        shards = workers_of(pids)
        beside = Beside([*pids, *load.pids])
        before, ran_before = cpu_times(shards), ran(shards)
        full = load.full(packets)
        after, spent = cpu_times(shards), ran(shards) - ran_before
        passed = max(full["received"], 1) * hops
        rate = full["received"] / full["seconds"]
        loads = {str(part): load.at(part * rate / 100, packets // 4) for part in LOADS}
        user, system = after[0] - before[0], after[1] - before[1]
        return {
            "hops": hops, "workers": workers, "suite": suite, "circuits": circuits, "packets": packets, "apart": load.apart,
            "packets_per_second": round(rate), "gbps": round(rate * PACKET_SIZE * 8e-9, 3), "lost": full["lost"],
            "cpu_ns_per_packet": round(spent / passed), "system_share": round(system / max(user + system, _TICK**-1), 2),
            "cryptography_ns": {name: round(steps[name]) for name in STEPS},
            "latency_us": loads, "memory_kib": memory_of(pids), "receive_buffer": load.receive_buffer, **beside.read(),
        }  # fmt: skip


# ---------------------------------------------------------------- what is printed


def progress(done: int, rows: int, *, quiet: bool) -> None:
    """A bar on the terminal's error output."""
    if quiet or not sys.stderr.isatty():
        return
    filled = 30 * done // rows
    print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{rows}", end="\n" if done == rows else "", file=sys.stderr, flush=True)


def report(document: dict[str, Any]) -> None:
    """As text."""
    for raw in document["raw_udp"]:
        print(f"raw UDP {raw['mode']:8} {raw['packets_per_second']:9,} packets/s {raw['gbps']:7.2f} Gbps  lost {raw['lost']}")
    for row in document["rows"]:
        memory = row["memory_kib"]
        print(
            f"{row['hops']} hops {row['workers']} workers {row['suite']} {row['circuits']} circuits: "
            f"{row['packets_per_second']:,} packets/s {row['gbps']:.2f} Gbps lost {row['lost']} of {row['packets']}  "
            f"{row['cpu_ns_per_packet']} CPU-ns a packet and relay, {row['system_share']:.0%} of it in the kernel"
            + ("" if row["apart"] else "  [sender and sink share the relays' cores]")
        )
        print("    cryptography alone, ns: " + ", ".join(f"{name} {ns}" for name, ns in row["cryptography_ns"].items()))
        for part, at in row["latency_us"].items():
            figures = ", ".join(f"{name} {us:.0f}" for name, us in at.items() if name.startswith("p"))
            print(
                f"    at {part:>2} %: {figures} us; offered {at['offered']:,} of {at['wanted']:,}/s, "
                f"lost {at['lost']} of {at['sent']}"
            )
        print(
            f"    PSS {memory['pss'] >> 10} MiB, locked {memory['locked'] >> 10}, huge pages {memory['huge'] >> 10}; "
            f"receive buffer {row['receive_buffer'] >> 10} KiB; "
            f"steal {row['steal']:.1%}, other processes {row['others']:.1%} of all cores"
        )


def plot(path: Path, document: dict[str, Any]) -> None:
    """Gbps of each row and of raw UDP as bars."""
    values = [(f"raw UDP, {raw['mode']}", raw["gbps"]) for raw in document["raw_udp"]]
    values += [
        (f"{row['hops']} hops, {row['workers']} workers, {row['suite']}, {row['circuits']} circuits", row["gbps"])
        for row in document["rows"]
    ]
    path.write_text(bars("Gbps of packets of 1280 bytes", values), "utf-8")


def numbers(text: str) -> list[int]:
    """Comma-separated whole numbers above zero."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("numbers from 1 on")
    return found


def arguments() -> argparse.Namespace:
    """What the user asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=numbers, default=numbers(",".join(map(str, range(1, min(4, len(spare_cores())) + 1)))))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--circuits", type=numbers, default=[1, 8], help="1 to 8 each")
    parser.add_argument("--hops", type=numbers, default=[1], help="relays between sender and sink, 1 to 6 each")
    parser.add_argument("--packets", type=int, default=400_000, help="of each row at full load; a quarter at each other load")
    parser.add_argument("--raw-seconds", type=float, default=2.0, help="of each measurement of raw UDP")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    options.suites = options.suites.split(",")
    if not 1000 <= options.packets <= MOST * min(options.circuits):
        parser.error(f"--packets: 1,000 to {MOST:,} for each circuit")
    if set(options.suites) - set(SUITES) or max(options.circuits) > 8 or max(options.hops) > 6 or max(options.workers) > 4:
        parser.error(f"suites are {', '.join(SUITES)}; at most 8 circuits, 6 hops, 4 workers")
    return options


def main() -> int:
    """Measure every combination and print."""
    options = arguments()
    combinations = [
        (hops, workers, suite, circuits)
        for hops in options.hops for workers in options.workers for suite in options.suites for circuits in options.circuits
    ]  # fmt: skip
    document: dict[str, Any] = {"schema": "nyx.bench.throughput", "version": 1, "cores": len(spare_cores())}
    document["raw_udp"] = raw_udp(options.raw_seconds)
    steps = {suite: crypto.measure(SUITES[suite], 200) for suite in options.suites}
    document["rows"] = []
    for done, (hops, workers, suite, circuits) in enumerate(combinations):
        progress(done, len(combinations), quiet=options.json)
        document["rows"].append(measure(hops, workers, suite, circuits, options.packets, steps[suite]))
    progress(len(combinations), len(combinations), quiet=options.json)
    if options.plot:
        plot(options.plot, document)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        report(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
