"""Headers of everything a node sends are the same whoever it is for and whatever came in; forged ICMP errors change nothing.

In a network namespace (root): its loopback has defaults of our choice, and what is learnt of routes dies with it.
"""

import os
import select
import socket
import struct
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nyx.wire.geometry import PACKET_SIZE
from shards.edge.pumps import prepare
from shards.marks import HOPS
from tests.shards.test_udp import End

CLONE_NEWNET = 0x40000000
BURST = 60
DF = 0x4000
FRAGMENT_OFFSET = 0x1FFF
HOSTS = {4: "127.0.0.1", 6: "::1"}


def namespaced(work: Callable[[], None], *, settings: dict[str, str] | None = None) -> None:
    """Run it in a child whose network is an empty one with a loopback and these settings; its failure is ours."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            import ctypes

            if ctypes.CDLL(None).unshare(CLONE_NEWNET):
                raise OSError("unshare")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for name, value in (settings or {}).items():
                Path("/proc/sys/net", name).write_text(value)
            work()
        except BaseException:  # noqa: BLE001 (told to the parent)
            os.write(write, traceback.format_exc().encode()[-4000:])
            os._exit(1)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as said:
        assert status == 0, said.read()


root = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace and raw sockets need root")


def is_later_fragment(packet: bytes) -> bool:
    return packet[0] >> 4 == 4 and bool(int.from_bytes(packet[6:8], "big") & FRAGMENT_OFFSET)


class Tap:
    """Internet headers of what crosses the loopback, by the port it came from.

    A later fragment names no port and is left out: its first one, whose header says that more follow, is there.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        self.socket.bind(("lo", 0))
        self.over = True  # otherwise `read` goes on when nothing comes

    def read(self) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = {}
        while select.select([self.socket], [], [], 0.3)[0] or not self.over:
            if not select.select([self.socket], [], [], 0)[0]:
                continue
            frame, address = self.socket.recvfrom(1 << 17)
            packet = frame[14:]
            if address[2] != socket.PACKET_OUTGOING and not is_later_fragment(packet):
                size = 40 if packet[0] >> 4 == 6 else 20
                found.setdefault(struct.unpack_from(">H", packet, size)[0], []).append(packet[:size])
        return found


def marks(header: bytes) -> tuple[int, ...]:
    """What a header could carry from hop to hop: hops left, traffic class with ECN, flow label, fragmentation, identification."""
    if header[0] >> 4 == 6:
        first = int.from_bytes(header[:4], "big")
        return header[7], first >> 20 & 0xFF, first & 0xFFFFF
    return header[8], header[1], int.from_bytes(header[6:8], "big"), int.from_bytes(header[4:6], "big")


def right(version: int) -> tuple[int, ...]:
    return (HOPS, 0, DF, 0) if version == 4 else (HOPS, 0, 0)


# Defaults of a machine that would mark what leaves.
ODD = {
    "ipv4/ip_default_ttl": "77",
    "ipv4/ip_no_pmtu_disc": "1",
    "ipv6/conf/lo/hop_limit": "33",
    "ipv6/auto_flowlabels": "1",
    "ipv6/flowlabel_reflect": "3",
    "ipv4/tcp_reflect_tos": "1",
}


def send(a: End, others: list[End], host: str, count: int) -> None:
    """Bursts of `count` packets to each of the others, in one call."""
    rows = np.repeat(np.arange(len(others), dtype=np.int64), count)
    slots = a.fill([bytes([n & 255]) * PACKET_SIZE for n in range(len(rows))])
    table = np.frombuffer(b"".join(a.address(host, b) for b in others), np.uint8).copy()
    stride = len(table) // len(others)
    assert a.udp.send_to(slots, rows, len(rows), table.ctypes.data, stride) == len(rows)
    a.pool.give(slots)


@root
@pytest.mark.parametrize(("version", "bound"), [(4, "127.0.0.1"), (6, "::1"), (4, "::")])
@pytest.mark.parametrize("offload", [True, False])
def test_all_packets_carry_the_same_marks(version: int, bound: str, offload: bool) -> None:
    def work() -> None:
        host = HOSTS[version]
        me, *others = [End(bound, offload=offload) for _ in range(4)]
        tap = Tap()
        stranger = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        level, hops, tos = (
            (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS)
            if version == 6
            else (socket.IPPROTO_IP, socket.IP_TTL, socket.IP_TOS)
        )
        for mark in (0, 1, 2, 3, 0xB8, 0xFF):  # ECN's three and two of the classes
            stranger.setsockopt(level, tos, mark)
            stranger.setsockopt(level, hops, 20 + mark % 100)
            stranger.sendto(bytes(PACKET_SIZE), (host, me.port))
            assert len(me.read(1)) == 1
            send(me, others, host, BURST)
        seen = tap.read()
        assert len({marks(header) for header in seen[stranger.getsockname()[1]]}) == 6, "the marked packets did not arrive"
        assert len(seen[me.port]) >= 6 * len(others)
        assert {marks(header) for header in seen[me.port]} == {right(version)}

    namespaced(work, settings=ODD)


@root
@pytest.mark.parametrize("version", [4, 6])
def test_sockets_to_targets_copy_no_mark_of_what_came(version: int) -> None:
    def work() -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        server = socket.socket(family)
        option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if version == 6 else (socket.IPPROTO_IP, socket.IP_TOS)
        server.setsockopt(*option, 0xB8)  # what it answers is marked
        server.bind((HOSTS[version], 0))
        server.listen()
        tap = Tap()
        mine = socket.socket(family)
        prepare(mine)
        mine.connect_ex(server.getsockname()[:2])
        theirs, _ = server.accept()
        for _ in range(5):
            theirs.send(b"marked")
            mine.setblocking(True)
            assert mine.recv(100) == b"marked"
            mine.send(b"unmarked")
            assert theirs.recv(100) == b"unmarked"
        seen = {marks(header)[:3] for header in tap.read()[mine.getsockname()[1]]}
        assert seen == {right(version)[:3]}

    namespaced(work, settings=ODD | {"ipv4/ip_no_pmtu_disc": "0"})


# ---------------------------------------------------------------- forged ICMP


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp(kind: int, code: int, mtu: int, source: int, target: int) -> bytes:
    """An error about a packet that 127.0.0.1:source sent to 127.0.0.1:target."""
    inner = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + PACKET_SIZE, 0, DF, 64, 17, 0, *[socket.inet_aton("127.0.0.1")] * 2)
    inner += struct.pack(">HHHH", source, target, 8 + PACKET_SIZE, 0)
    body = struct.pack(">BBHHH", kind, code, 0, 0, mtu) + inner
    return struct.pack(">BBHHH", kind, code, checksum(body), 0, mtu) + inner


UNREACHABLE = [(3, code, 576 if code == 4 else 0) for code in range(16)]
FORGED = [*UNREACHABLE, (4, 0, 0), (11, 0, 0), (11, 1, 0), (12, 0, 0)]


@root
@pytest.mark.parametrize("offload", [True, False])
def test_forged_errors_change_nothing_that_leaves(offload: bool) -> None:
    def work() -> None:
        a, b = End("127.0.0.1", offload=offload), End("127.0.0.1", offload=offload)
        forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        tap = Tap()
        send(a, [b], "127.0.0.1", BURST)
        assert len(b.read(BURST)) == BURST
        gso = a.udp.gso
        for kind, code, mtu in FORGED:
            forger.sendto(icmp(kind, code, mtu, a.port, b.port), ("127.0.0.1", 0))
            time.sleep(0.01)
            assert not select.select([], [], [a.socket], 0)[2]
            assert a.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            send(a, [b], "127.0.0.1", BURST)
            assert len(b.read(BURST)) == BURST, f"after ICMP {kind}/{code}"
        counted = [int(a.udp.counters[n]) for n in (6, 8)]  # SEND_FAILED, GSO_REFUSED
        assert counted == [0, 0]
        assert a.udp.gso == gso
        assert {marks(header) for header in tap.read()[a.port]} == {right(4)}
        route = subprocess.run(["ip", "route", "get", "127.0.0.1"], capture_output=True, text=True, check=True).stdout
        assert "mtu" in route, "the forged size was not believed by the kernel either: nothing was tried"

    namespaced(work)
