"""What a running network tells its operators: it moves with the traffic, and says nothing about whom or whither."""

import concurrent.futures
import time
import urllib.request
from collections.abc import Callable

import pytest
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
