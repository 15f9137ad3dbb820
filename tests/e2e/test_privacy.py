"""What the wire and the relays see: only uniform 1280-byte packets, and no relay more than its neighbours."""

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bench.network import Network

pytestmark = pytest.mark.timeout(300)

ETH_P_ALL = 3
CHI_SQUARE_255_HIGH = 400.0  # 255 degrees of freedom: beyond it with probability 1e-8


class Capture:
    """Every UDP and TCP payload that crosses the loopback interface, as (protocol, source port, target port, payload)."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, bytes]] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING:
                self._take(frame[14:])

    def _take(self, packet: bytes) -> None:
        if packet[:1] != b"\x45":
            return
        protocol = packet[9]
        source, target = struct.unpack_from(">HH", packet, 20)
        if protocol == socket.IPPROTO_UDP:
            self.seen.append((protocol, source, target, packet[28:]))
        elif protocol == socket.IPPROTO_TCP:
            self.seen.append((protocol, source, target, packet[20 + (packet[32] >> 4) * 4 :]))

    def close(self) -> None:
        time.sleep(0.3)
        self._stop.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def capture() -> Iterator[Capture]:
    tap = Capture()
    try:
        yield tap
    finally:
        tap.close()


def nyx_packets(tap: Capture, network: Network) -> list[bytes]:
    """UDP payloads of the network's nodes; a segmented burst crosses the loopback whole and is cut as the kernel would."""
    ports = network.ports
    found: list[bytes] = []
    for protocol, source, target, payload in tap.seen:
        if protocol == socket.IPPROTO_UDP and (source in ports or target in ports):
            assert len(payload) % 1280 == 0, f"a datagram of {len(payload)} bytes"
            found.extend(payload[at : at + 1280] for at in range(0, len(payload), 1280))
    return found


def chi_square(octets: np.ndarray) -> float:
    counts = np.bincount(octets, minlength=256)
    expected = octets.size / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_three_different_relay_processes_carry_a_circuit(network: Network, web: str) -> None:
    network.curl(f"{web}/echo/x")
    own = [c for c in network.ask("circuits")["circuits"] if c["role"] == "client" and c["state"] == "ready"]
    assert own
    relays = {n["alias"]: n["pid"] for n in network.nodes() if n["role"] != "client"}
    for circuit in own:
        names = [hop["alias"] for hop in circuit["hops"]]
        assert len(set(names)) == 3
        assert len({relays[name] for name in names}) == 3


def test_a_relay_knows_its_neighbours_and_no_path(network: Network, web: str) -> None:
    network.curl(f"{web}/echo/x")
    for node in network.nodes():
        if node["role"] == "client":
            continue
        for circuit in network.ask("circuits", alias=node["alias"])["circuits"]:
            assert circuit["role"] in {"relay", "last"}
            assert circuit["hops"] is None
        for stream in network.ask("streams", alias=node["alias"])["streams"]:
            assert stream["target"] is None


def test_the_wire_carries_uniform_packets_of_one_size_and_no_plaintext(network: Network, web: str) -> None:
    marker = hashlib.sha256(b"a marker that stands in the answer").hexdigest()
    with capture() as tap:
        for _ in range(30):
            assert network.curl(f"{web}/echo/{marker}").stdout.decode() == marker
        network.curl("-o", "/dev/null", f"{web}/blob/{8 << 20}")
    packets = nyx_packets(tap, network)
    assert len(packets) > 10_000
    assert not any(marker.encode() in packet for packet in packets)
    matrix = np.frombuffer(b"".join(packets), np.uint8).reshape(-1, 1280)
    assert chi_square(matrix[:, 12:].ravel()) < CHI_SQUARE_255_HIGH
    for column in range(12, 1280):
        assert chi_square(matrix[:, column]) < CHI_SQUARE_255_HIGH, f"byte {column} is not uniform"


def test_handshakes_and_builds_are_uniform_too(network: Network, web: str) -> None:
    """New isolation keys force new circuits: builds cross the wire among them."""
    with capture() as tap:
        for number in range(40):
            network.curl("--proxy-user", f"user{number}:x", f"{web}/echo/x")
    packets = nyx_packets(tap, network)
    assert len(packets) > 1000
    matrix = np.frombuffer(b"".join(packets), np.uint8).reshape(-1, 1280)
    for column in range(12, 1280):
        assert chi_square(matrix[:, column]) < CHI_SQUARE_255_HIGH, f"byte {column} is not uniform"


def test_plaintext_appears_at_the_exit_alone(network: Network, web: str) -> None:
    """Besides the application's own connection to the proxy, only the exit's socket to the target carries the bytes."""
    marker = hashlib.sha256(b"plaintext at the exit").hexdigest().encode()
    with capture() as tap:
        network.curl(f"{web}/echo/{marker.decode()}")
    web_port = int(web.rpartition(":")[2])
    carriers = {
        (protocol, port)
        for protocol, source, target, payload in tap.seen
        if marker in payload
        for port in (source, target)
        if port in {web_port, network.proxy_port} or port in network.ports
    }
    assert carriers == {(socket.IPPROTO_TCP, web_port), (socket.IPPROTO_TCP, network.proxy_port)}
