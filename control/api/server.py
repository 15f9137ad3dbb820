"""gRPC itself: the services of nyx.v1, health and reflection, on the unix socket behind the front and by TCP.

Everything that a client can make large or many is bounded here: messages, metadata, calls of a connection and of all, pings.
By TCP nobody is served without a certificate that `api.client_ca` signed or the token of `api.token_file`, and there is no
reflection. Source: gRPC core's grpc_types.h for the options.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from control.api import rpc
from control.api.access import Certificates, Renewed, TokenCheck
from control.api.carrier import Carrier
from control.api.configuration import Configuration
from control.api.generated import nyx_v1_pb2 as pb
from control.api.node import Node
from control.api.streams import Streams
from control.feed.watch import Told, Watch
from control.pages import Pages
from control.schemas import Status
from control.service import Service, address_text
from nyx.config import Config

REQUEST_MAX: Final = 1 << 20  # bytes of a client's message
ANSWER_MAX: Final = 64 << 20
CALLS_MAX: Final = 256  # at one time
GRACE: Final = 0.5  # seconds for calls to end when the control process does
OPTIONS: Final = (
    ("grpc.max_receive_message_length", REQUEST_MAX),
    ("grpc.max_send_message_length", ANSWER_MAX),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_metadata_size", 16384),
    ("grpc.absolute_max_metadata_size", 16384),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),
)
_SERVICES: Final = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())

_log: Final = logging.getLogger(__name__)


class Grpc:
    """The servers of one life. Methods are shared; `local` and `remote` begin to serve, `stop` ends both."""

    def __init__(self, config: Config, service: Service, pages: Pages, watch: Watch) -> None:
        self._config = config.api
        self._service = service
        self._watch = watch
        self._carrier = Carrier(config.sdk_socket if config.sdk.enabled else None)
        named = {
            "Node": Node(service, pages, watch),
            "Streams": Streams(service, self._carrier),
            "Configuration": Configuration(service),
        }
        services = pb.DESCRIPTOR.services_by_name
        self._handlers = [rpc.handler(services[name], methods) for name, methods in named.items()]
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._healthy = False
        self._keys: list[Renewed[Any]] = []

    async def local(self, path: Path) -> None:
        """Serve on a unix socket."""
        server = await self._server(())
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        server.add_insecure_port(f"unix:{quote(str(path))}")
        await server.start()
        self._servers.append(server)

    async def remote(self) -> None:
        """Serve by TCP. Raises ConfigError, and RuntimeError where the address cannot be had."""
        config = self._config
        assert config.listen is not None
        token = TokenCheck(config.token_file) if config.token_file else None
        certificates = Certificates(config) if config.tls_cert else None
        server = await self._server((token,) if token else ())
        host, port = config.listen
        address = address_text((host, port))
        if certificates:
            server.add_secure_port(address, certificates.credentials())
        else:
            server.add_insecure_port(address)
        await server.start()
        self._servers.append(server)
        self._keys = [found for found in (token and token.token, certificates and certificates.files) if found]

    @property
    def problem(self) -> str | None:
        """Why a certificate or token that is there now is not in force."""
        return "; ".join(keys.problem for keys in self._keys if keys.problem) or None

    async def stop(self) -> None:
        """End every call and stream."""
        for server in self._servers:
            await server.stop(GRACE)
        await self._carrier.close()

    async def _server(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
        if not self._healthy:
            self._healthy = True
            self._watch.listeners.append(self._on_look)
            await self._on_look(await self._service.status(), ())
            self._watch.start()
        server = grpc.aio.server(interceptors=interceptors, options=OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        server.add_generic_rpc_handlers(self._handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    async def _on_look(self, status: Status, _told: Sequence[Told]) -> None:
        """Node and Configuration serve whenever they answer; streams, and the node as a whole, when it is ready."""
        values = health_pb2.HealthCheckResponse
        for name in ("", *_SERVICES):
            waits = name in {"", "nyx.v1.Streams"} and not status.ready
            await self._health.set(name, values.NOT_SERVING if waits else values.SERVING)
