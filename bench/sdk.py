"""Claim: a stream of the SDK carries at least 80 % of what a stream of the SOCKS proxy does, both ways, in the same run.

    python -m bench.sdk [--hops 3] [--mib 128] [--rounds 5] [--json]

One network, one target. The rounds alternate between the SDK and the proxy, each from a fresh connection, so that whatever else
the machine does meets both. Prints Mbps of application bytes and the ratio of each round's two figures; ends with 1 below the
claim.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.network import running_network
from bench.stream import connect
from nyx.sdk import Client

CLAIM: Final = 0.8
_BLOCK: Final = os.urandom(1 << 20)
_DOWN, _UP = b"d", b"u"


def target() -> tuple[int, int]:
    """Fork a server: after "d" and a count it sends so many bytes, after "u" and a count it takes them and answers one byte."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = int(listener.getsockname()[1])
    pid = os.fork()
    if pid:
        listener.close()
        return pid, port
    buffer = bytearray(1 << 20)
    while True:
        connection, _ = listener.accept()
        with connection:
            head = connection.recv(9, socket.MSG_WAITALL)
            left = struct.unpack(">Q", head[1:])[0] if len(head) == 9 else 0
            while left and head[:1] == _DOWN:
                left -= connection.send(_BLOCK[: min(left, len(_BLOCK))])
            while left and head[:1] == _UP:
                if not (count := connection.recv_into(buffer)):
                    break
                left -= count
            if head[:1] == _UP:
                connection.sendall(b".")


def by_proxy(port: int, proxy: int, way: bytes, size: int) -> float:
    """Seconds for `size` bytes over the proxy."""
    with connect(port, proxy) as stream:
        start = time.perf_counter()
        stream.sendall(way + struct.pack(">Q", size))
        buffer, left = bytearray(1 << 20), size
        while left and way == _UP:
            left -= stream.send(_BLOCK[: min(left, len(_BLOCK))])
        while left or way == _UP:
            count = stream.recv_into(buffer)
            if way == _UP:
                break
            left -= count
            if not count:
                raise RuntimeError(f"the stream ended {left} bytes before its end")
        return time.perf_counter() - start


async def by_sdk(client: Client, port: int, way: bytes, size: int) -> float:
    """Seconds for `size` bytes over the SDK."""
    async with await client.open_stream("127.0.0.1", port) as stream:
        start = time.perf_counter()
        await stream.send(way + struct.pack(">Q", size))
        buffer, left = bytearray(1 << 20), size
        while left and way == _UP:
            part = _BLOCK[: min(left, len(_BLOCK))]
            await stream.send(part)
            left -= len(part)
        while left:
            count = await stream.readinto(buffer)
            left -= count
            if not count:
                raise RuntimeError(f"the stream ended {left} bytes before its end")
        if way == _UP:
            await stream.readexactly(1)
        return time.perf_counter() - start


async def measure(folder: Path, hops: int, size: int, rounds: int, port: int) -> dict[str, Any]:
    """Rounds of both, both ways, in turn."""
    found: dict[str, Any] = {"hops": hops, "size": size, "claim": CLAIM}
    with running_network(folder, "--hops", str(hops), nodes=max(4, hops) + 1) as network:
        sock = next(Path(n["socket"]).parent / "sdk.sock" for n in network.nodes() if n["role"] == "client")
        async with Client(sock) as client:
            await client.ready()
            for way, name in ((_DOWN, "down"), (_UP, "up")):
                times: dict[str, list[float]] = {"sdk": [], "socks": []}
                for number in range(rounds + 1):
                    one = await by_sdk(client, port, way, size)
                    other = await asyncio.to_thread(by_proxy, port, network.proxy_port, way, size)
                    if number:  # the first warms circuits and caches
                        times["sdk"].append(size * 8e-6 / one)
                        times["socks"].append(size * 8e-6 / other)
                ratios = [a / b for a, b in zip(times["sdk"], times["socks"], strict=True)]
                found[name] = {
                    "sdk_mbps": statistics.median(times["sdk"]),
                    "socks_mbps": statistics.median(times["socks"]),
                    "ratio": statistics.median(ratios),
                    "ratios": ratios,
                }
    return found


def main() -> int:
    """Measure, print, and end with 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hops", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pid, port = target()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(measure(Path(folder, "net"), options.hops, options.mib << 20, options.rounds, port))
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)
    holds = all(found[name]["ratio"] >= CLAIM for name in ("down", "up"))
    if options.json:
        print(json.dumps({"schema": "nyx.bench.sdk", "version": 1, **found, "holds": holds}, indent=1))
    else:
        for name in ("down", "up"):
            row = found[name]
            print(f"{name:5} SDK {row['sdk_mbps']:6.0f} Mbps   SOCKS {row['socks_mbps']:6.0f} Mbps   ratio {row['ratio']:.2f}")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
