"""A running network in a network namespace of its own, while packets with marks and forged ICMP errors come in."""

import contextlib
import hashlib
import itertools
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.network import Network, running_network
from shards.marks import HOPS
from tests.e2e.conftest import _Handler, _Server, blob_digest
from tests.shards.test_marks import FORGED, ODD, Tap, icmp, marks, namespaced, right, root

pytestmark = pytest.mark.timeout(400)

SIZE = 24 << 20
LEGAL = {right(4)}


def forge(ports: range, over: threading.Event) -> dict[str, int]:
    """Errors about packets between any two nodes, and junk under every mark, until told; how many of each."""
    errors = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    junk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent = {"errors": 0, "marked": 0}
    for n in itertools.count():
        for source, target in itertools.permutations(ports, 2):
            kind, code, mtu = FORGED[n % len(FORGED)]
            with contextlib.suppress(OSError):  # the kernel's own bound on ICMP
                errors.sendto(icmp(kind, code, mtu, source, target), ("127.0.0.1", 0))
                sent["errors"] += 1
            junk.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, n & 255)
            junk.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1 + n % 255)
            junk.sendto(random.randbytes(1280), ("127.0.0.1", target))
            sent["marked"] += 1
        if over.wait(0.02):
            return sent
    raise AssertionError


def counted(network: Network, name: str) -> int:
    return sum(network.ask("stats", alias=node["alias"])["total"][name] for node in network.nodes())


@root
def test_marks_and_forged_errors_change_nothing(tmp_path: Path) -> None:
    def work() -> None:
        server = _Server(("127.0.0.1", 0), _Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        with running_network(tmp_path, nodes=4) as network:
            assert network.curl(f"{web}/echo/x").stdout == b"x"
            closed, failed = counted(network, "links_closed"), counted(network, "send_failed")
            tap, over = Tap(), threading.Event()
            done: list[dict[Any, Any]] = []
            attack = threading.Thread(target=lambda: done.append(forge(network.ports, over)))
            watch = threading.Thread(target=lambda: done.append(tap.read()))
            tap.over = False
            attack.start()
            watch.start()
            body = network.curl(f"{web}/blob/{SIZE}").stdout
            for n in range(10):
                assert network.curl("--proxy-user", f"u{n}:x", f"{web}/echo/{n}").stdout == str(n).encode()
            time.sleep(2)
            over.set()
            attack.join()
            nodes, tap.over = network.ports, True
            watch.join()
            sums, seen = done
            assert hashlib.sha256(body).hexdigest() == blob_digest(SIZE)
            assert sums["errors"] > 500
            assert sums["marked"] > 500
            assert (counted(network, "links_closed"), counted(network, "send_failed")) == (closed, failed)
            sent = [marks(header) for port in nodes for header in seen[port]]
            assert len(sent) > 1000
            assert set(sent) == LEGAL
            strange = {marks(h)[0] for port in seen for h in seen[port] if port not in nodes}
            assert len(strange - {HOPS}) > 10, "no marked packet came"

    namespaced(work, settings={name: value for name, value in ODD.items() if name != "ipv4/ip_no_pmtu_disc"})
