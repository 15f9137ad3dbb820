"""The metrics of a real control process, as a scraper, a linter and an attacker meet them."""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.network import free_port
from control.metrics import families, server
from nyx.stats import BOUNDS, COUNTERS, REFUSALS, Counter, Latency
from nyx.wire.codes import DROP_LABELS
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, status

CANARY = "canary.example"


@contextlib.contextmanager
def serving(folder, told=None, host="127.0.0.1", more=""):
    """A control process with its metrics on; the node and the port."""
    port = free_port()
    config = CONFIG + f'[metrics]\nlisten = "{host}:{port}"\n{more}'
    with node(folder, told, config=config) as running:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield running, port


def get(port, path="/metrics", method="GET", headers=None, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def raw(port, data, wait=20.0):
    """What the server says to these bytes until it ends the connection."""
    with socket.create_connection(("127.0.0.1", port), wait) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
    return found


def ended(connection):
    """Whether the other side ended the connection without a word."""
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def samples(text):
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_every_metric_of_the_table_is_told_and_no_other(tmp_path):
    with serving(tmp_path, [answers(0), answers(1)]) as (_, port):
        answer, text = get(port)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(text)
    assert {name for name, _ in found} == {name for family in families.FAMILIES for name in family.samples}
    labels = {f: set(f.labels) | ({"le"} if f.kind == families.HISTOGRAM else set()) for f in families.FAMILIES}
    by_name = {name: labels[f] for f in families.FAMILIES for name in f.samples}
    assert all({key for key, _ in pairs} <= by_name[name] for name, pairs in found)


def test_every_counter_has_a_metric():
    assert set(families.WORKER) == set(Counter), "a line is missing in control/metrics/families.py"


def test_values_are_the_nodes_own_in_base_units(tmp_path):
    with serving(tmp_path, [answers(0), answers(1)]) as (_, port):
        found = samples(get(port)[1])
    assert found["nyx_packets_received_total", (("worker", "1"),)] == Counter.PACKETS_IN + 1
    assert found["nyx_worker_busy_seconds_total", (("worker", "0"),)] == pytest.approx(Counter.BUSY * 1e-9)
    for prefix, family, known in (("dropped_", families.DROPPED, DROP_LABELS[1:]), ("refused_", families.REFUSED, REFUSALS)):
        for label in known:
            assert found[family.name, (("reason", label), ("worker", "0"))] == COUNTERS.index(prefix + label)
    assert found["nyx_ready", ()] == 1
    assert (found["nyx_circuits", ()], found["nyx_links", ()], found["nyx_start_time_seconds", ()]) == (6, 2, 1234)
    assert found["nyx_process_restarts_total", (("role", "worker"), ("worker", "1"))] == 1
    assert found["nyx_process_resident_memory_bytes", (("role", "supervisor"), ("worker", ""))] > 1 << 20
    assert found["nyx_process_cpu_seconds_total", (("role", "supervisor"), ("worker", ""))] > 0


def test_histograms_are_cumulative_sums_of_the_workers(tmp_path):
    times = {Latency.STREAM_OPEN: [20_000_000, 21_000_000], Latency.LINK_ROUND_TRIP: [5]}
    with serving(tmp_path, [answers(0), answers(1)]) as (running, port):
        running.observe(0, times)
        running.observe(1, times)
        time.sleep(server.FRESH * 1.1)
        found = samples(get(port)[1])
    assert found["nyx_stream_open_seconds_count", ()] == 4
    assert found["nyx_stream_open_seconds_sum", ()] == pytest.approx(0.082)
    below = {float(dict(pairs)["le"]): v for (name, pairs), v in found.items() if name == "nyx_stream_open_seconds_bucket"}
    assert (below[0.015], below[0.02], below[0.025], below[float("inf")]) == (0, 2, 4, 4)
    assert len(below) == len(BOUNDS) + 1
    assert found["nyx_link_round_trip_seconds_bucket", (("le", "1e-05"),)] == 2


def test_a_mute_worker_is_told_as_down_and_nothing_of_the_workers_words_gets_in(tmp_path):
    told = answers(0) | {"status": status(0, "links", warnings=[f"no way to {CANARY}"])}
    with serving(tmp_path, [told, {}]) as (_, port):
        text = get(port)[1]
    found = samples(text)
    assert [found["nyx_worker_up", (("worker", str(i)),)] for i in (0, 1)] == [1, 0]
    assert (found["nyx_ready", ()], found["nyx_warnings", ()]) == (0, 2)
    assert CANARY not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_say(tmp_path):
    with serving(tmp_path) as (_, port):
        text = get(port)[1]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False, timeout=30
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    bad = text + "# HELP nyx_bad_ms x\n# TYPE nyx_bad_ms counter\nnyx_bad_ms 1\n"
    checked = subprocess.run(["promtool", "check", "metrics"], input=bad, text=True, capture_output=True, check=False, timeout=30)
    assert checked.returncode != 0


def test_the_documentation_has_the_table():
    text = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text("utf-8")
    assert "\n".join(families.table()) in text


# ---------------------------------------------------------------- who is served


def test_hosts_that_a_rebound_name_would_send_are_refused(tmp_path):
    with serving(tmp_path) as (_, port):
        for host in ("127.0.0.1", f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
            assert get(port, headers={"Host": host})[0].status == 200, host
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "8.8.8.8",
            "",
            "localhost.",
            "a b",
            "[::1",
        ):
            answer, text = get(port, headers={"Host": host})
            assert answer.status == 421, host
            assert "nyx_" not in text
        assert raw(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 421 ")
        twice = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
        assert raw(port, twice).startswith(b"HTTP/1.1 421 ")
        assert get(port, headers={"Origin": "http://127.0.0.1"})[0].status == 403


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics?x=1", 404),
        ("GET", "/metrics/../x", 404),
        ("POST", "/metrics", 405),
        ("HEAD", "/metrics", 405),
    ],
)
def test_nothing_else_is_served(tmp_path, method, path, code):
    with serving(tmp_path) as (_, port):
        assert get(port, path, method)[0].status == code


def test_what_is_no_request_is_refused_and_the_server_goes_on(tmp_path):
    with serving(tmp_path) as (_, port):
        for data in (
            b"\x16\x03\x01\r\n\r\n",
            b"GET /metrics\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\n folded: x\r\n\r\n",
            b"\r\n\r\n",
        ):
            assert raw(port, data).startswith(b"HTTP/1.1 400 "), data
        long = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 16)
        assert raw(port, long)[:12] in (b"HTTP/1.1 431", b"")  # or reset, with our bytes unread
        many = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100 + b"\r\n"
        assert raw(port, many).startswith(b"HTTP/1.1 400 ")
        assert get(port)[0].status == 200


def test_a_slow_client_is_cut_off_and_crowds_make_room(tmp_path):
    with serving(tmp_path) as (_, port):
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(server.CONNECTIONS_MAX)]
            for connection in slow:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
            assert raw(port, b"") == b""  # one more is not even heard
            assert all(ended(connection) for connection in slow)
            assert time.monotonic() - began >= server.REQUEST_TIME * 0.9  # it was the deadline that cut them off
        assert get(port)[0].status == 200


def test_addresses_beyond_this_machine_need_a_word_and_are_warned_about(tmp_path):
    import json

    from tests.control.test_process import document

    with serving(tmp_path, host="0.0.0.0", more="allow_remote = true\n") as (running, port):
        [warning] = document(running.socket, "status")["warnings"]
        assert re.fullmatch(rf"metrics are served at 0\.0\.0\.0:{port}: everybody .*", warning)
        assert get(port)[0].status == 200
        assert get(port, headers={"Host": "10.9.8.7"})[0].status == 421
        assert json.dumps(warning)


def test_a_port_that_is_taken_is_a_warning_and_tried_again(tmp_path, monkeypatch):
    from tests.control.test_process import document

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with node(tmp_path, config=CONFIG + f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as running:
            until = time.monotonic() + 20
            while not (found := document(running.socket, "status")["warnings"]) and time.monotonic() < until:
                time.sleep(0.05)
            assert found == ["metrics.listen: Address already in use: metrics are not served until that is mended"]
            taken.close()
            while document(running.socket, "status")["warnings"] and time.monotonic() < until:
                time.sleep(0.1)
            assert get(port)[0].status == 200
