"""What it costs to move packets of 1280 bytes between two processes through shards/udp.py: one by one, and with offload.

Claim: with segmentation offload a packet costs a fraction of what it costs one by one, bytes landing in slots of the pool and
leaving them in both cases. One sender and one receiver on loopback, a core each; packets in flight are bounded, so that none is
lost to a full receive buffer. "bare" is the same with one call a packet from Python's socket module.

    python bench/udp.py [--json] [--seconds S] [--window N] [--buffer BYTES] [--ipv6]
"""

import argparse
import json
import os
import resource
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from nyx.columns import Column, allocate
from nyx.kernel import PLAIN, address_of
from nyx.wire.geometry import PACKET_SIZE
from shards.address import ADDRESS_SIZE, pack
from shards.memory import Memory
from shards.poller import Poller, fine_timers
from shards.pool import Pool, pool_columns
from shards.udp import Udp, bind_group

BURST = 192
RECEIVED, SENT, STOP, READY, BUFFER, GRO, GSO = range(7)  # words shared by both processes
CPU = 8  # and from here on: CPU ns of receiver and sender
PAUSE = 20_000  # ns between two looks at a full window
PATIENCE = 200_000_000  # ns without a packet, after which those in flight count as lost


def cpu() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int((used.ru_utime + used.ru_stime) * 1e9)


def pin(index: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})


def receive(sock: socket.socket, words: Any, mode: str, buffer: int) -> None:
    pin(1)
    poller = Poller()
    poller.register(sock.fileno(), select.EPOLLIN)
    udp = Udp(sock, Pool(allocate(pool_columns(1))), offload=mode == "offload")
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    words[BUFFER], words[GRO] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), udp.gro
    before, words[READY] = cpu(), 1
    while not words[STOP]:
        poller.wait(50_000_000)
        if mode == "bare":
            while True:
                try:
                    sock.recv(2048)
                except BlockingIOError:
                    break
                words[RECEIVED] += 1
            continue
        while n := udp.receive():
            udp.pool.give(udp.slots[:n])
            words[RECEIVED] += n
    words[CPU] = cpu() - before


def send(sock: socket.socket, words: Any, mode: str, destination: tuple[str, int], seconds: float, window: int) -> float:
    """Send for so long; the seconds it took."""
    pin(0)
    fine_timers()
    poller = Poller()
    pool = Pool(allocate(pool_columns(1)))
    udp = Udp(sock, pool, offload=mode == "offload")
    slots, rows = pool.take(BURST), np.zeros(BURST, np.int64)
    to = np.frombuffer(pack(*destination, sock.family), np.uint8).copy()
    packet = bytes(PACKET_SIZE)
    while not words[READY]:
        poller.wait(1_000_000)
    words[GSO] = udp.gso
    before, start = cpu(), time.perf_counter()
    sent, quiet = 0, time.monotonic_ns()
    lost, last = 0, 0
    while time.perf_counter() - start < seconds:
        received = int(words[RECEIVED])
        if received != last:
            last, quiet = received, time.monotonic_ns()
        if sent - lost - received > window - BURST:
            poller.wait(PAUSE)
            if time.monotonic_ns() - quiet > PATIENCE:
                lost = sent - received
            continue
        if mode == "bare":
            for _ in range(BURST):
                sock.sendto(packet, destination)
            sent += BURST
        else:
            sent += udp.send_to(slots, rows, BURST, address_of(to), ADDRESS_SIZE)
    took = time.perf_counter() - start
    words[SENT], words[CPU + 1] = sent, cpu() - before
    poller.wait(100_000_000)
    return took


def measure(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    host = "::1" if options.ipv6 else "127.0.0.1"
    words = Memory.create("nyx-bench", [Column("words", np.dtype(np.int64), 16)]).columns["words"]
    (receiver,), (sender,) = bind_group(host, 0, 1), bind_group(host, 0, 1)
    child = os.fork()
    if child == 0:
        try:
            receive(receiver, words, mode, options.buffer)
        finally:
            os._exit(0)
    cores = os.sched_getaffinity(0)
    took = send(sender, words, mode, (host, receiver.getsockname()[1]), options.seconds, options.window)
    os.sched_setaffinity(0, cores)
    words[STOP] = 1
    os.waitpid(child, 0)
    receiver.close()
    sender.close()
    received, sent = int(words[RECEIVED]), int(words[SENT])
    return {
        "mode": mode,
        "packets_per_second": round(received / took),
        "gbps": round(received * PACKET_SIZE * 8 / took / 1e9, 3),
        "lost": sent - received,
        "sender_cpu_ns_per_packet": round(int(words[CPU + 1]) / max(sent, 1)),
        "receiver_cpu_ns_per_packet": round(int(words[CPU]) / max(received, 1)),
        "gso": bool(words[GSO]) and mode != "bare",
        "gro": bool(words[GRO]) and mode != "bare",
        "receive_buffer": int(words[BUFFER]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each run")
    parser.add_argument("--window", type=int, default=960, help="packets in flight (192 suits a buffer of 416 KiB)")
    parser.add_argument("--buffer", type=int, default=0, help="SO_RCVBUF to ask for; 0: what the data plane asks for")
    parser.add_argument("--ipv6", action="store_true", help="over ::1 instead of 127.0.0.1")
    options = parser.parse_args()
    if options.window < BURST:
        parser.error(f"--window must be at least {BURST}")
    if PLAIN:
        print("kernels are not compiled: these figures say nothing", file=sys.stderr)
    runs = [measure(mode, options) for mode in ("bare", "plain", "offload")]
    if options.json:
        document = {"schema": "nyx.bench.udp", "version": 1, "seconds": options.seconds, "window": options.window}
        print(json.dumps(document | {"cores": len(os.sched_getaffinity(0)), "runs": runs}))
        return 0
    print(f"{'mode':<8} {'packets/s':>12} {'Gbps':>7} {'lost':>7} {'send ns':>8} {'recv ns':>8}  buffer KiB")
    for r in runs:
        print(
            f"{r['mode']:<8} {r['packets_per_second']:>12,} {r['gbps']:>7.2f} {r['lost']:>7} {r['sender_cpu_ns_per_packet']:>8}"
            f" {r['receiver_cpu_ns_per_packet']:>8}  {r['receive_buffer'] >> 10}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
