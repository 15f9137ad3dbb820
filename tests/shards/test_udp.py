"""Bursts through real sockets: bytes right both ways, odd sizes dropped and counted, with and without offload."""

import random
import select
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from nyx.columns import allocate
from nyx.wire.geometry import PACKET_SIZE
from shards import udp
from shards.address import ADDRESS_SIZE, pack, unpack
from shards.pool import Pool, pool_columns
from shards.udp import Udp, bind_group

SLOTS = 2048
SEGMENT = 103


class End:
    """A socket with a pool of its own."""

    def __init__(self, host: str, *, offload: bool, slots: int = SLOTS) -> None:
        (self.socket,) = bind_group(host, 0, 1)
        self.pool = Pool(allocate(pool_columns(1, slots)))
        self.udp = Udp(self.socket, self.pool, offload=offload)
        self.port = self.socket.getsockname()[1]

    def address(self, host: str, to: "End") -> bytes:
        return pack(host, to.port, self.socket.family)

    def fill(self, packets: list[bytes]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        slots = self.pool.take(len(packets))
        assert len(slots) == len(packets)
        for slot, packet in zip(slots, packets, strict=True):
            self.pool.packets[slot * PACKET_SIZE : (slot + 1) * PACKET_SIZE] = np.frombuffer(packet, np.uint8)
        return slots

    def read(self, wanted: int, wait: float = 5.0) -> list[tuple[bytes, tuple[str, int]]]:
        found: list[tuple[bytes, tuple[str, int]]] = []
        while len(found) < wanted and select.select([self.socket], [], [], wait)[0]:
            n = self.udp.receive()
            for k in range(n):
                slot = int(self.udp.slots[k])
                packet = self.pool.packets[slot * PACKET_SIZE : (slot + 1) * PACKET_SIZE].tobytes()
                found.append((packet, unpack(self.udp.source(k))))
            self.pool.give(self.udp.slots[:n])
            self.pool.check_invariants()
        return found

    def counter(self, index: int) -> int:
        return int(self.udp.counters[index])

    def close(self) -> None:
        self.udp.withdraw()
        assert self.pool.free_count == self.pool.count
        self.pool.check_invariants()
        self.socket.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(
    params=[(True, True), (False, True), (True, False), (False, False)], ids=["gso-gro", "plain-gro", "gso-plain", "plain"]
)
def ends(request: pytest.FixtureRequest, host: str) -> Iterator[tuple[End, End]]:
    sender, receiver = (End(host, offload=offload) for offload in request.param)
    yield sender, receiver
    sender.close()
    receiver.close()


def burst(rng: random.Random, n: int) -> list[bytes]:
    return [rng.randbytes(PACKET_SIZE) for _ in range(n)]


def send(end: End, packets: list[bytes], rows: list[int], destinations: list[bytes]) -> int:
    slots = end.fill(packets)
    table = np.frombuffer(b"".join(destinations), np.uint8).copy()
    taken = end.udp.send_to(slots, np.array(rows, np.int64), len(slots), int(table.ctypes.data), ADDRESS_SIZE)
    end.pool.give(slots)
    return taken


def test_48_slots_cross_both_ways(ends: tuple[End, End], host: str, rng: random.Random) -> None:
    for one, other in (ends, ends[::-1]):
        packets = burst(rng, 48)
        assert send(one, packets, [0] * 48, [one.address(host, other)]) == 48
        assert other.read(48) == [(packet, (host, one.port)) for packet in packets]
        assert one.counter(udp.PACKETS_OUT) == 48
        assert one.counter(udp.MESSAGES_OUT) == (1 if one.udp.gso else 48)


def test_mixed_sessions_keep_their_order_and_their_messages(ends: tuple[End, End], host: str, rng: random.Random) -> None:
    sender, receiver = ends
    second = End(host, offload=True)
    rows = [0] * 30 + [1] * 70 + [0] * 3 + [1] + [0] * 50
    packets = burst(rng, len(rows))
    destinations = [sender.address(host, receiver), sender.address(host, second)]
    assert send(sender, packets, rows, destinations) == len(rows)
    for row, end in enumerate((receiver, second)):
        wanted = [packet for packet, r in zip(packets, rows, strict=True) if r == row]
        assert [packet for packet, _ in end.read(len(wanted))] == wanted
    if sender.udp.gso:
        assert sender.counter(udp.MESSAGES_OUT) == 7  # 30 | 48, 22 | 3 | 1 | 48, 2
    second.close()


def test_more_than_one_call_carries(ends: tuple[End, End], host: str, rng: random.Random) -> None:
    sender, receiver = ends
    packets = burst(rng, 200)
    assert send(sender, packets, [0] * 200, [sender.address(host, receiver)]) == 200
    assert [packet for packet, _ in receiver.read(200)] == packets


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("size", [0, 1, 12, 700, 1279, 1281, 2560, 9000])
def test_datagrams_of_another_size_are_dropped_and_counted(offload: bool, size: int, rng: random.Random) -> None:
    end = End("127.0.0.1", offload=offload)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.sendto(bytes(size), ("127.0.0.1", end.port))
    right = rng.randbytes(PACKET_SIZE)
    stranger.sendto(right, ("127.0.0.1", end.port))
    assert [packet for packet, _ in end.read(1)] == [right]
    assert end.counter(udp.ODD_SIZE) == 1
    stranger.close()
    end.close()


@pytest.mark.parametrize(("segment", "size", "dropped"), [(100, 5000, 50), (1279, 1279 * 3, 3), (1281, 1281 + 1280, 2)])
def test_bursts_of_other_segments_are_dropped_whole(segment: int, size: int, dropped: int) -> None:
    end = End("127.0.0.1", offload=True)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.sendmsg([bytes(size)], [(17, SEGMENT, struct.pack("H", segment))], 0, ("127.0.0.1", end.port))
    assert end.read(1, wait=0.05) == []
    assert end.counter(udp.ODD_SIZE) == dropped
    stranger.close()
    end.close()


def test_a_runt_behind_a_burst_costs_only_itself(rng: random.Random) -> None:
    end = End("127.0.0.1", offload=True)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets = burst(rng, 5)
    stranger.sendmsg([*packets, bytes(99)], [(17, SEGMENT, struct.pack("H", PACKET_SIZE))], 0, ("127.0.0.1", end.port))
    assert [packet for packet, _ in end.read(5)] == packets
    assert end.counter(udp.ODD_SIZE) == 1
    stranger.close()
    end.close()


def test_the_largest_merged_message_fits(rng: random.Random) -> None:
    end = End("127.0.0.1", offload=True)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets = burst(rng, 51)
    stranger.sendmsg(packets, [(17, SEGMENT, struct.pack("H", PACKET_SIZE))], 0, ("127.0.0.1", end.port))
    assert [packet for packet, _ in end.read(51)] == packets
    stranger.close()
    end.close()


def test_an_empty_pool_leaves_packets_in_the_socket(rng: random.Random) -> None:
    """With slots for one whole message and a few, nothing is lost while the caller holds them: it waits in the kernel."""
    sender = End("127.0.0.1", offload=True)
    end = End("127.0.0.1", offload=True, slots=udp.GRO_SEGMENTS + 9)
    packets = burst(rng, 96)
    assert send(sender, packets, [0] * 96, [sender.address("127.0.0.1", end)]) == 96
    assert select.select([end.socket], [], [], 5)[0]
    held = []
    n = end.udp.receive()
    held += end.udp.slots[:n].tolist()
    assert n == 48
    assert end.udp.receive() == 0
    assert end.counter(udp.NO_BUFFER) > 0
    got = [end.pool.packets[s * PACKET_SIZE : (s + 1) * PACKET_SIZE].tobytes() for s in held]
    end.pool.give(np.array(held, np.int64))
    assert got + [packet for packet, _ in end.read(48)] == packets
    sender.close()
    end.close()


def test_one_bad_destination_costs_only_its_packets(host: str, rng: random.Random) -> None:
    sender, receiver = End(host, offload=True), End(host, offload=True)
    unreachable = sender.address("0.0.0.0" if host == "127.0.0.1" else "::", receiver)
    broken = b"\x63\x00" + bytes(26)  # no such address family
    rows = [0, 0, 1, 1, 1, 0, 2]
    packets = burst(rng, len(rows))
    assert send(sender, packets, rows, [sender.address(host, receiver), broken, unreachable]) == len(rows)
    assert [packet for packet, _ in receiver.read(3)][:3] == [packets[0], packets[1], packets[5]]
    assert sender.counter(udp.SEND_FAILED) >= 3
    receiver.read(1, wait=0.01)
    sender.close()
    receiver.close()


def test_a_segmented_message_that_is_refused_goes_packet_by_packet(rng: random.Random) -> None:
    sender, receiver = End("127.0.0.1", offload=True), End("127.0.0.1", offload=True)
    packets = burst(rng, 48)
    sender.socket.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: segmentation needs checksums, so it is EINVAL
    assert send(sender, packets, [0] * 48, [sender.address("127.0.0.1", receiver)]) == 48
    assert sender.counter(udp.GSO_REFUSED) == 1
    assert sender.counter(udp.MESSAGES_OUT) == 48
    assert [packet for packet, _ in receiver.read(48)] == packets
    sender.close()
    receiver.close()


def test_a_packet_in_no_slot(host: str, rng: random.Random) -> None:
    sender, receiver = End(host, offload=True), End(host, offload=True)
    packet = rng.randbytes(PACKET_SIZE)
    assert sender.udp.send_raw(sender.address(host, receiver), packet)
    assert receiver.read(1) == [(packet, (host, sender.port))]
    sender.close()
    receiver.close()


def test_a_small_buffer_is_correct(rng: random.Random) -> None:
    """416 KiB hold four bursts of 48: no more in flight, nothing lost, over many rounds."""
    sender, receiver = End("127.0.0.1", offload=True), End("127.0.0.1", offload=True)
    receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 212_992)
    assert receiver.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 425_984
    for _ in range(5):
        packets = burst(rng, 192)
        assert send(sender, packets, [0] * 192, [sender.address("127.0.0.1", receiver)]) == 192
        assert [packet for packet, _ in receiver.read(192)] == packets
    sender.close()
    receiver.close()


def test_a_port_that_is_taken_is_refused() -> None:
    (plain,) = bind_group("127.0.0.1", 0, 1)
    port = plain.getsockname()[1]
    for members in (1, 3):
        with pytest.raises(OSError, match="in use"):
            bind_group("127.0.0.1", port, members)
    plain.close()
    group = bind_group("127.0.0.1", port, 3)
    assert {sock.getsockname()[1] for sock in group} == {port}
    for taken_by_group in (1, 2):
        with pytest.raises(OSError, match="in use"):
            bind_group("127.0.0.1", port, taken_by_group)
    with pytest.raises(OSError, match="in use"):
        bind_group("::", port, 2)
    for sock in group:
        sock.close()
