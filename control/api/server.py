"""gRPC itself: the services of nyx.v1, health and reflection, on the unix socket behind the front and by TCP.

Everything that a client can make large or many is bounded here: messages, metadata, calls of a connection and of all, pings.
By TCP nobody is served without a certificate that `api.client_ca` signed or the token of `api.token_file`, and there is no
reflection. Source: gRPC core's grpc_types.h for the options.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from control.api import rpc
from control.api.carrier import Carrier
from control.api.configuration import Configuration
from control.api.errors import KINDS, trailing
from control.api.generated import nyx_v1_pb2 as pb
from control.api.node import Node
from control.api.streams import Streams
from control.feed.watch import Told, Watch
from control.pages import Pages
from control.schemas import Status
from control.service import Service, address_text
from nyx.config import ApiConfig, Config
from nyx.errors import ConfigError
from nyx.files import read_private

REQUEST_MAX: Final = 1 << 20  # bytes of a client's message
ANSWER_MAX: Final = 64 << 20
CALLS_MAX: Final = 256  # at one time
GRACE: Final = 0.5  # seconds for calls to end when the control process does
TOKEN_LENGTH: Final = (16, 1024)  # bytes
_FILE_MAX: Final = 1 << 16
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
        token = _token(config.token_file) if config.token_file else None
        server = await self._server((_TokenCheck(token),) if token else ())
        host, port = config.listen
        address = address_text((host, port))
        if config.tls_cert:
            server.add_secure_port(address, _credentials(config))
        else:
            server.add_insecure_port(address)
        await server.start()
        self._servers.append(server)

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


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Lets a call through whose metadata has the token."""

    def __init__(self, token: bytes) -> None:
        self._expected = b"Bearer " + token
        self._refusal: Any = grpc.unary_unary_rpc_method_handler(_unauthenticated)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Look at every call, also of methods that there are not."""
        for key, value in handler_call_details.invocation_metadata or ():
            given = value.encode() if isinstance(value, str) else value
            if key == "authorization" and hmac.compare_digest(given, self._expected):
                return await continuation(handler_call_details)
        return self._refusal


async def _unauthenticated(_request: Any, context: Any) -> None:
    code = "unauthenticated"
    await context.abort(KINDS[code].status, "the token is missing or wrong", trailing(code))


def _token(path: Path) -> bytes:
    token = read_private(path, _FILE_MAX).strip()
    least, most = TOKEN_LENGTH
    if not least <= len(token) <= most or not token.isascii() or not token.decode("latin-1").isprintable() or b" " in token:
        raise ConfigError([f"{path}: a token has {least} to {most} printable characters and no space: openssl rand -hex 32"])
    return token


def _credentials(config: ApiConfig) -> grpc.ServerCredentials:
    assert config.tls_cert is not None
    assert config.tls_key is not None
    key, chain = read_private(config.tls_key, _FILE_MAX), _read(config.tls_cert)
    roots = _read(config.client_ca) if config.client_ca else None
    return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=roots is not None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
