"""OpenTelemetry from a real control process to a receiver of OTLP over HTTP: what arrives, and when nobody is there."""

import contextlib
import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.network import free_port
from control import client
from control.metrics import families
from nyx.config import load
from nyx.errors import ConfigError
from tests.control.nodes import CONFIG, node

PATIENCE = 60
LABELS = {"worker", "role", "reason", "le", "version", "protocol", "python"}


class Collector:
    """Takes what comes."""

    def __init__(self, port):
        self.metrics, self.spans, self.resources = {}, [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                {"/v1/metrics": collector.take_metrics, "/v1/traces": collector.take_spans}[self.path](body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take_metrics(self, body):
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            self.resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, str(metric.WhichOneof("data")))
                    self.metrics[metric.name] = list(data.data_points)

    def take_spans(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def collector(port):
    found = Collector(port)
    try:
        yield found
    finally:
        found.close()


def config(port):
    return CONFIG + f'[telemetry]\notlp = "127.0.0.1:{port}"\ninterval = 1\n[monitor]\ninterval = 1\n'


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def warnings(running):
    return [text for text in client.ask(running.socket, "status", timeout=PATIENCE)["warnings"] if "telemetry" in text]


def value(point):
    return getattr(point, point.WhichOneof("value"))


def test_what_prometheus_reads_arrives_and_spans_of_what_operators_do(tmp_path):
    port = free_port()
    with collector(port) as found, node(tmp_path, config=config(port)) as running:
        wait_for(lambda: "nyx_ready" in found.metrics)
        client.ask(running.socket, "circuits")
        with pytest.raises(client.ClientError):
            client.ask(running.socket, "restart", {"worker": "no number"})
        wait_for(lambda: {"circuits", "restart"} <= {span.name for span in found.spans})
        running.count(0, "packets_in", 1_000_000)
        wait_for(lambda: value(found.metrics["nyx_packets_received_total"][0]) >= 1_000_000)
        assert warnings(running) == []
        expected = {name for family in families.FAMILIES for name in family.samples}
        missing = expected - set(found.metrics)
        assert missing <= {"nyx_memory_used_bytes", "nyx_memory_cap_bytes"}, "those that a stand-in of a worker does not tell"
        assert set(found.metrics) <= expected
        points = [point for metric in found.metrics.values() for point in metric]
        assert {attribute.key for point in points for attribute in point.attributes} <= LABELS
        outcomes = {span.name: {a.key: a.value.string_value for a in span.attributes} for span in found.spans}
        assert outcomes["circuits"] == {"nyx.outcome": "ok"}
        assert outcomes["restart"] == {"nyx.outcome": "unknown_operation"} or outcomes["restart"] == {
            "nyx.outcome": "bad_request"
        }
        assert not any(span.events or span.status.message for span in found.spans)
        resource = found.resources[-1]
        assert (resource["service.name"], resource["service.instance.id"], resource["nyx.role"]) == ("nyxd", "alice", "client")


def test_a_collector_that_is_away_is_named_and_found_when_it_comes(tmp_path):
    port = free_port()
    with node(tmp_path, config=config(port)) as running:
        wait_for(lambda: warnings(running))
        assert f"no collector takes what is sent to 127.0.0.1:{port}" in warnings(running)[0]
        with collector(port) as found:
            wait_for(lambda: found.metrics)
            wait_for(lambda: not warnings(running))


def test_without_the_library_the_node_runs_and_says_what_to_install(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked" / "opentelemetry"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not here', name='opentelemetry')\n")
    monkeypatch.setenv("PYTHONPATH", str(blocked.parent), prepend=":")
    with node(tmp_path, config=config(free_port())) as running:
        wait_for(lambda: warnings(running))
        [text] = warnings(running)
        assert "opentelemetry is not installed" in text
        assert "nyxnet[otel]" in text


@pytest.mark.parametrize("where", ["192.0.2.1:4318", "collector.example:4318", "127.0.0.1"])
def test_a_collector_elsewhere_is_no_configuration(tmp_path, where):
    (tmp_path / "nyx.toml").write_text(CONFIG + f'[telemetry]\notlp = "{where}"\n')
    with pytest.raises(ConfigError, match=r"telemetry\.otlp"):
        load(tmp_path / "nyx.toml")
