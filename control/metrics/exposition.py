"""The text that Prometheus reads, from one moment's numbers: the table of families filled with samples.

Counters and latencies come from the shared memory, so that a busy worker formats nothing; states come from the node's status.
"""

import platform
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from control.metrics import families
from control.metrics.families import Family
from control.metrics.processes import Usage, usages
from control.pages import Pages
from control.schemas import Status
from nyx import __version__
from nyx.crypto.schedule import PROLOGUE
from nyx.stats import BOUNDS, REFUSALS
from nyx.wire.codes import DROP_LABELS

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_USES: Final = {
    families.RESTARTS: "restarts", families.CPU: "cpu", families.MEMORY: "memory", families.DESCRIPTORS: "descriptors",
}  # fmt: skip

Samples = Sequence[tuple[Sequence[str], float]]  # values of the labels, value


def render(pages: Pages, status: Status) -> bytes:
    """Every metric of this moment. Takes some milliseconds: /proc is read for each process."""
    table = pages.processes()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Moment(pages, status, usages(table) if table else []))
    return generate_latest(registry)


def moment(pages: Pages, status: Status) -> list[Metric]:
    """The same as families with their samples."""
    table = pages.processes()
    return list(_Moment(pages, status, usages(table) if table else []).collect())


class _Moment(Collector):
    """What the client library asks for its samples."""

    def __init__(self, pages: Pages, status: Status, processes: Sequence[Usage]) -> None:
        self._pages, self._status, self._processes = pages, status, processes

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before it is collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Fill the table."""
        yield from _states(self._status)
        yield from _latencies(self._pages)
        yield from _counters(self._pages.counters())
        yield from _uses(self._processes)


def _metric(family: Family, samples: Samples) -> Metric:
    kind = CounterMetricFamily if family.kind == families.COUNTER else GaugeMetricFamily
    found = kind(family.name, family.about, labels=family.labels)
    for labels, value in samples:
        found.add_metric(labels, value * family.factor)
    return found


def _states(status: Status) -> Iterator[Metric]:
    yield _metric(families.BUILD, [((__version__, PROLOGUE.decode().removesuffix("link-1"), platform.python_version()), 1)])
    values = {
        families.STARTED: status.started, families.READY: status.ready, families.PROGRESS: status.progress / 100,
        families.WARNINGS: len(status.warnings), families.LINKS: status.links, families.CIRCUITS: status.circuits,
        families.CIRCUITS_READY: status.circuits_ready, families.STREAMS: status.streams,
        families.MEMORY_USED: status.memory_used, families.MEMORY_CAP: status.memory_cap,
    }  # fmt: skip
    for family, value in values.items():
        if value is not None:
            yield _metric(family, [((), float(value))])
    workers = [(p.name.removeprefix("worker "), p.state) for p in status.processes if p.name.startswith("worker ")]
    yield _metric(families.WORKER_UP, [((number,), state == "running") for number, state in workers])


def _latencies(pages: Pages) -> Iterator[Metric]:
    for which, histogram in pages.latencies().items():
        family, below = families.LATENCY[which], 0
        buckets = []
        for bound, count in zip((*BOUNDS, None), histogram.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound is None else f"{bound / 1e9:g}", float(below)))
        found = HistogramMetricFamily(family.name, family.about)
        found.add_metric((), buckets, histogram.total * family.factor)
        yield found


def _counters(rows: Sequence[dict[str, int]]) -> Iterator[Metric]:
    for counter, family in families.WORKER.items():
        yield _metric(family, [((str(worker),), row[counter.name.lower()]) for worker, row in enumerate(rows)])
    for family, prefix, labels in ((families.DROPPED, "dropped_", DROP_LABELS[1:]), (families.REFUSED, "refused_", REFUSALS)):
        yield _metric(family, [((str(w), label), row[prefix + label]) for w, row in enumerate(rows) for label in labels])


def _uses(processes: Sequence[Usage]) -> Iterator[Metric]:
    for family, name in _USES.items():
        values = [((p.role, p.worker), getattr(p, name)) for p in processes]
        yield _metric(family, [(labels, value) for labels, value in values if value is not None])
