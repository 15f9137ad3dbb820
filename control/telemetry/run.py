"""Telemetry as a part of the control process: loaded when it is asked for, and no reason for anything else to fail."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from control.feed.watch import Told, Watch
from control.pages import Pages
from control.schemas import Status
from control.service import Service, address_text
from control.telemetry.spans import traced, untraced
from nyx.config import Config

if TYPE_CHECKING:
    from control.telemetry.exporter import Exporter

_MISSING = "telemetry.otlp: {} is not installed; install nyxnet[otel] (make install OTEL=yes) and restart the node"


class Telemetry:
    """Exports to the collector that the configuration names, until cancelled."""

    def __init__(self, config: Config, service: Service, pages: Pages, watch: Watch) -> None:
        self._config = config
        self._service = service
        self._pages = pages
        self._watch = watch
        self._status: Status | None = None
        self._exporter: Exporter | None = None
        self._missing: str | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing arrives."""
        return self._missing or (self._exporter.health.problem if self._exporter else None)

    async def run(self) -> None:
        """Export until cancelled, then deliver what waits."""
        self._watch.listeners.append(self._on_look)
        try:
            self._exporter = await asyncio.to_thread(self._load)
        except ImportError as error:
            self._missing = _MISSING.format(error.name or "opentelemetry")
            return
        self._service.trace = traced(self._exporter.start)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._service.trace = untraced
            await asyncio.to_thread(self._exporter.close)

    async def _on_look(self, status: Status, _told: Sequence[Told]) -> None:
        self._status = status

    def _load(self) -> "Exporter":
        from control.metrics.exposition import moment
        from control.telemetry.exporter import Exporter

        node, telemetry = self._config.node, self._config.telemetry
        assert telemetry.otlp is not None
        attributes = {"service.instance.id": node.alias, "nyx.role": node.role}
        return Exporter(
            address_text(telemetry.otlp),
            telemetry.interval,
            attributes,
            lambda: moment(self._pages, self._status) if self._status else (),
        )
