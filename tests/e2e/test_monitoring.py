"""What a running network tells its operators: it moves with the traffic, and says nothing about whom or whither."""

import concurrent.futures
import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from bench.network import Network, free_port
from control.metrics import families
from nyx.stats import BOUNDS, REFUSALS
from nyx.wire.codes import DROP_LABELS
from tests.e2e.conftest import NODES

pytestmark = pytest.mark.timeout(300)

CANARY = "canary-7c1d.invalid"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def total(port: int, name: str) -> float:
    return sum(value for (found, _), value in samples(scrape(port)).items() if found == name)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_values_rise_while_a_transfer_runs(network: Network, web: str, metrics_port: int) -> None:
    client, relays = metrics_port + NODES - 1, range(metrics_port, metrics_port + NODES - 1)
    size = 256 << 20
    network.curl(f"{web}/echo/x")
    before = total(client, "nyx_stream_received_bytes_total")
    relayed = {port: total(port, "nyx_cells_relayed_total") for port in relays}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(network.curl, "-o", "/dev/null", f"{web}/blob/{size}")
        until(lambda: total(client, "nyx_stream_received_bytes_total") > before, "no byte was counted")
        seen = [total(client, "nyx_stream_received_bytes_total") - before for _ in range(3)]
        during = not transfer.done()
        transfer.result()
    assert during, "the transfer was over before it was looked at"
    assert 0 < seen[0] <= seen[1] <= seen[2] <= size
    until(lambda: total(client, "nyx_stream_received_bytes_total") - before >= size, "not every byte was counted")
    until(lambda: sum(total(p, "nyx_cells_relayed_total") > relayed[p] for p in relays) >= 2, "no relay counted cells")
    found = samples(scrape(client))
    assert found["nyx_ready", ()] == 1
    assert found["nyx_stream_open_seconds_count", ()] >= 2
    assert found["nyx_link_round_trip_seconds_count", ()] >= 1
    assert found["nyx_process_cpu_seconds_total", (("role", "worker"), ("worker", "0"))] > 0


def test_refusals_are_told_by_reason_at_both_ends(network: Network, metrics_port: int) -> None:
    def refused() -> list[float]:
        name, key = families.REFUSED.name, (("reason", "connection_refused"), ("worker", "0"))
        found = [samples(scrape(metrics_port + node)).get((name, key), 0.0) for node in range(NODES)]
        return [found[-1], sum(found[:-1])]  # the client, and whichever exit it was

    before = refused()
    network.curl(f"http://127.0.0.1:{free_port()}/", check=False)
    until(lambda: [b - a for a, b in zip(before, refused(), strict=True)] == [1, 1], "nobody counted the refusal")
    assert network.ask("stats")["latencies"]["stream_open"]["p50"] is not None


def test_nobody_is_named_and_labels_stay_in_their_sets(network: Network, web: str, metrics_port: int) -> None:
    network.curl(f"{web}/echo/secret-path-4711")
    network.curl(f"http://{CANARY}/", check=False)
    names = {peer["node"] for peer in network.ask("peers")["peers"]} | {node["alias"] for node in network.nodes()}
    assert len(names) > NODES
    allowed = {"worker": {"", "0"}, "role": set(families.ROLES), "reason": {*DROP_LABELS[1:], *REFUSALS}}
    for port in range(metrics_port, metrics_port + NODES):
        text = scrape(port)
        assert not [secret for secret in (*names, "canary", "secret-path", "127.0.0.1") if secret and secret in text]
        for name, labels in samples(text):
            for label, value in labels:
                if label == "le":
                    assert value == "+Inf" or any(abs(float(value) - b / 1e9) < 1e-12 for b in BOUNDS)
                elif name != families.BUILD.name:
                    assert value in allowed[label], (name, label, value)


def test_the_feed_of_a_sealed_node_tells_how_it_goes_and_names_nobody(network: Network, web: str) -> None:
    client = next(node for node in network.nodes() if node["role"] == "client")
    names = {peer["node"] for peer in network.ask("peers")["peers"]} | {n["alias"] for n in network.nodes()} - {client["alias"]}
    bodies: dict[str, list[bytes]] = {}
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe("")
        socket.connect(f"ipc://{Path(client['socket']).parent}/feed.sock")
        network.curl(f"{web}/echo/secret-path-4711")
        network.curl(f"http://{CANARY}/", check=False)
        wanted = network.ask("stats")["total"]["streams_refused"]

        def told() -> bool:
            while socket.poll(100):
                topic, body = socket.recv_multipart()
                bodies.setdefault(topic.decode(), []).append(body)
            stats = [json.loads(body)["data"]["total"] for body in bodies.get("nyx.stats/1", [])]
            return bool(stats) and stats[-1]["streams_refused"] >= wanted and stats[-1]["bytes_out"] > 0

        until(told, "the feed did not tell of the traffic")
    assert {"nyx.status/1", "nyx.stats/1", "nyx.events/1"} == set(bodies)
    text = b"".join(body for found in bodies.values() for body in found).decode()
    assert not [secret for secret in (*names, "canary", "secret-path") if secret and secret in text]
