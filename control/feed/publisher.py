"""The feed's loop: publish what each look at the node found, and repeat the last of each topic for newcomers.

It runs as a task of the control process and does a bounded amount of work in each turn; nothing it does waits for a subscriber.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zmq

from control.feed import keys
from control.feed.message import Numbering, topic_of
from control.feed.sockets import Doorman, Endpoint, local, remote
from control.feed.watch import Told, Watch
from control.schemas import Document, Event, Status
from control.service import Service
from nyx.config import Config
from nyx.errors import ConfigError
from nyx.scrub import scrub

TURN: Final = 0.1  # seconds
RETRY: Final = 5.0  # seconds until what could not be opened is tried again

_log: Final = logging.getLogger(__name__)


class Publisher:
    """One life of the feed. `problem` says why it is not published, where it is not."""

    def __init__(self, config: Config, service: Service, watch: Watch) -> None:
        self._config = config
        self._service = service
        self._watch = watch
        self._numbering = Numbering(config.node.alias, watch.life, time.time)
        self._endpoints: list[Endpoint] = []
        self._doorman: Doorman | None = None
        self.problem: str | None = None

    async def run(self) -> None:
        """Publish until cancelled."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._watch.listeners.append(self._tell)
        self._watch.start()
        try:
            while not self._open(context):  # noqa: ASYNC110  nothing tells when a port becomes free
                await asyncio.sleep(RETRY)
            while True:
                self._serve()
                await asyncio.sleep(TURN)
        finally:
            self._close()
            context.term()

    def _open(self, context: "zmq.Context[zmq.Socket[bytes]]") -> bool:
        state_dir, listen = self._config.node.state_dir, self._config.monitor.listen
        try:
            if self._config.monitor.feed:
                self._endpoints.append(local(context, feed_path(self._config)))
            if listen:
                _, secret = keys.load_or_make(state_dir)
                self._doorman = Doorman(context, lambda: keys.readers(state_dir))
                self._endpoints.append(remote(context, listen, secret))
        except (zmq.ZMQError, ConfigError, OSError) as error:
            self._close()
            problem = f"the monitoring feed cannot be opened: {error}; it is tried again"
            if problem != self.problem:
                _log.error("%s", problem)
            self.problem = problem
            return False
        self.problem = None
        return True

    def _close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()
            if endpoint.address.startswith("ipc:"):
                feed_path(self._config).unlink(missing_ok=True)  # ZeroMQ leaves it
        self._endpoints.clear()
        if self._doorman:
            self._doorman.close()
            self._doorman = None

    def _serve(self) -> None:
        """Let readers in, and give newcomers the last of what they want."""
        if self._doorman:
            self._doorman.turn()
        for endpoint in self._endpoints:
            for topic in endpoint.joined() & self._numbering.last.keys():
                endpoint.send(topic, self._numbering.last[topic])

    async def _tell(self, status: Status, told: Sequence[Told]) -> None:
        """Publish what a look found."""
        for event in told:
            self._event(event)
        self.publish(dataclasses.replace(status, warnings=[scrub(text) for text in status.warnings]))
        self.publish(await self._service.handle("stats", {}))

    def _event(self, told: Told) -> None:
        try:
            self._send(*self._numbering.make(told.event, told.sequence, told.time))
        except ValueError:
            self._event(self._watch.add(Event("too_long", text=topic_of(told.event))))

    def publish(self, document: Document) -> None:
        """Send a document to everybody who subscribed to its topic; of one that is too long, word."""
        try:
            self._send(*self._numbering.make(document))
        except ValueError:
            self._event(self._watch.add(Event("too_long", text=topic_of(document))))

    def _send(self, topic: str, body: bytes) -> None:
        for endpoint in self._endpoints:
            endpoint.send(topic, body)


def feed_path(config: Config) -> Path:
    """Unix socket of the feed."""
    return config.node.run_dir / "feed.sock"
