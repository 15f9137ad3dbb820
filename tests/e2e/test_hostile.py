"""100,000 hostile packets against a running network: nothing crashes, grows, answers or stops working."""

import random
import socket
import time

import pytest

from bench.network import Network
from bench.stream import children, pss_kib
from tests.e2e.test_privacy import capture, nyx_packets

pytestmark = pytest.mark.timeout(300)

PACKETS = 100_000
WARM_UP = 20_000  # touches what a node keeps for good: its pool, its tables
GROWTH_KIB = 16 << 10


def supervisors(network: Network) -> list[int]:
    return [int(node["pid"]) for node in network.nodes()]


def memory(network: Network) -> int:
    return sum(pss_kib(pid) for supervisor in supervisors(network) for pid in children(supervisor))


def everybody(network: Network) -> set[int]:
    return {pid for supervisor in supervisors(network) for pid in children(supervisor)}


def dropped(network: Network) -> dict[str, int]:
    """Sum of the named drop counters of all nodes."""
    total: dict[str, int] = {}
    for node in network.nodes():
        for name, value in network.ask("stats", alias=node["alias"])["total"].items():
            total[name] = total.get(name, 0) + value
    return total


def hostile(rng: random.Random, real: list[bytes]) -> bytes:
    """One packet: random, truncated, oversized, replayed, flipped, or with a real CID and junk behind it."""
    kind = rng.randrange(6)
    packet = bytearray(rng.choice(real))
    if kind == 0:
        return rng.randbytes(1280)
    if kind == 1:
        return bytes(packet[: rng.randrange(1280)])
    if kind == 2:
        return bytes(packet) + rng.randbytes(rng.randrange(1, 200))
    if kind == 3:
        return bytes(packet)
    if kind == 4:
        bit = rng.randrange(1280 * 8)
        packet[bit // 8] ^= 1 << bit % 8
        return bytes(packet)
    return bytes(packet[:12]) + rng.randbytes(1268)


def test_hostile_packets_change_nothing(network: Network, web: str, rng: random.Random) -> None:
    with capture() as tap:
        for number in range(8):
            network.curl("--proxy-user", f"hostile{number}:x", f"{web}/echo/x")
        network.curl("-o", "/dev/null", f"{web}/blob/{1 << 20}")
    real = nyx_packets(tap, network)
    assert len(real) > 1000
    ports = [int(node["port"]) for node in network.nodes()]
    for _ in range(2):
        assert network.curl(f"{web}/echo/warm").stdout == b"warm"
    attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    attacker.bind(("127.0.0.1", 0))

    def attack(packets: int) -> None:
        for sent in range(packets):
            attacker.sendto(hostile(rng, real), ("127.0.0.1", rng.choice(ports)))
            if sent % 500 == 499:
                time.sleep(0.005)  # the sockets' queues are not what is tested
        time.sleep(1)

    attack(WARM_UP)
    processes, before, counted = everybody(network), memory(network), dropped(network)
    attack(PACKETS)
    attacker.setblocking(False)
    with pytest.raises(BlockingIOError):
        attacker.recv(2048)
    attacker.close()
    assert everybody(network) == processes, "a process ended"
    grown = memory(network) - before
    assert grown < GROWTH_KIB, f"{grown} KiB more"
    after = dropped(network)
    for name in ("odd_size", "dropped_bad_tag", "dropped_replayed"):
        assert after[name] > counted[name] + 100, f"{name}: the attack did not happen"
    assert network.curl(f"{web}/echo/after").stdout == b"after"


def test_an_idle_node_is_quiet(network: Network) -> None:
    """Nothing is sent to anybody who is no neighbour: no packet leaves the ports of the network."""
    with capture() as tap:
        time.sleep(1)
    ports = network.ports
    for protocol, source, target, _ in tap.seen:
        if protocol == socket.IPPROTO_UDP and source in ports:
            assert target in ports
