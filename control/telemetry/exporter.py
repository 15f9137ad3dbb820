"""The exporter: OpenTelemetry's SDK, fed from the table of metrics, in threads of its own, with bounded queues.

A collector that is away, slow or broken costs attempts of some seconds in those threads and what waits at most: one set of
figures and SPANS spans; what is more is dropped. The names are those of docs/monitoring.md. Source: opentelemetry.io, OTLP.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from prometheus_client.core import Metric

from control.metrics import families
from nyx import __version__

PATIENCE: Final = 5.0  # seconds for the collector to take one delivery
SPANS: Final = 512  # that wait at most
FRESH: Final = 1.0  # seconds for which one moment's figures serve all instruments

Figures = Callable[[], Iterable[Metric]]


class Health:
    """Whether the last delivery was taken."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.problem: str | None = None

    def note(self, *, taken: bool) -> None:
        """A delivery ended."""
        self.problem = (
            None if taken else f"telemetry.otlp: no collector takes what is sent to {self._endpoint}; it is tried again"
        )


class _Metrics(OTLPMetricExporter):
    health: Health

    def export(self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self.health.note(taken=result is MetricExportResult.SUCCESS)
        return result


class _Spans(OTLPSpanExporter):
    health: Health

    def export(self, spans: Any) -> SpanExportResult:
        result = super().export(spans)
        self.health.note(taken=result is SpanExportResult.SUCCESS)
        return result


class Exporter:
    """Begins to export when it is made. `start` is how a span begins."""

    def __init__(self, endpoint: str, interval: int, attributes: Mapping[str, str], figures: Figures) -> None:
        logging.getLogger("opentelemetry").disabled = True  # it would go past our log, and name what it speaks to
        self.health = Health(endpoint)
        resource = Resource({"service.name": "nyxd", "service.version": __version__, **attributes})
        metrics = _Metrics(f"http://{endpoint}/v1/metrics", timeout=PATIENCE, session=_session())
        spans = _Spans(f"http://{endpoint}/v1/traces", timeout=PATIENCE, session=_session())
        metrics.health = spans.health = self.health
        reader = PeriodicExportingMetricReader(metrics, interval * 1000, PATIENCE * 1000)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(BatchSpanProcessor(spans, SPANS, interval * 1000, SPANS // 4, PATIENCE * 1000))
        self._tracer = self._tracers.get_tracer("nyxd")
        self._moment = _Moment(figures)
        self._instruments()

    def start(self, name: str) -> Any:
        """A context manager of a span."""
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)

    def close(self) -> None:
        """Deliver what waits, for some seconds at most."""
        self._tracers.shutdown()
        self._meters.shutdown(timeout_millis=PATIENCE * 1000)

    def _instruments(self) -> None:
        meter = self._meters.get_meter("nyxd")
        for family in families.FAMILIES:
            make = meter.create_observable_gauge if family.kind == families.GAUGE else meter.create_observable_counter
            for name in family.samples:
                make(name, [self._moment.of(name)], description=family.about)


class _Moment:
    """One moment's samples by name, made once for all instruments of a delivery."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._lock = threading.Lock()
        self._made = float("-inf")
        self._samples: dict[str, list[Observation]] = {}

    def of(self, name: str) -> Callable[[CallbackOptions], list[Observation]]:
        """The callback of the instrument of this name."""

        def observe(_options: CallbackOptions) -> list[Observation]:
            with self._lock:
                if time.monotonic() - self._made > FRESH:
                    self._samples = _by_name(self._figures())
                    self._made = time.monotonic()
                return self._samples.get(name, [])

        return observe


def _by_name(figures: Iterable[Metric]) -> dict[str, list[Observation]]:
    found: dict[str, list[Observation]] = {}
    for metric in figures:
        for sample in metric.samples:
            found.setdefault(sample.name, []).append(Observation(sample.value, dict(sample.labels)))
    return found


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy of the environment, no .netrc
    return session
