"""aiohttp over Nyx: `aiohttp.ClientSession(connector=NyxConnector(client))`. Needs the package aiohttp.

Names are resolved at the exit; TLS is between this program and the target. Connections are kept and reused as aiohttp does it.
aiohttp has no public place for another kind of connection: this takes the one where its own connectors make theirs.
"""

import asyncio
import ssl
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from nyx.sdk.client import OPEN_TIME, Client
from nyx.sdk.errors import SdkError
from nyx.sdk.transport import StreamTransport


class NyxConnector(aiohttp.TCPConnector):
    """A connector whose connections are streams of one client, of one isolation."""

    def __init__(self, client: Client, *, isolation: str | bytes | None = None, **options: Any) -> None:
        """`options` as for aiohttp.TCPConnector, whose resolver is never used."""
        super().__init__(**options)
        self._client = client
        self._isolation = isolation

    async def _create_direct_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: Any,  # noqa: ARG002  # there is no look-up of a name to tell them of
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's
        *,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        host, port = req.url.raw_host, req.url.port
        limit = timeout.sock_connect or timeout.connect or OPEN_TIME
        try:
            stream = await self._client.open_stream(host or "", port or 0, isolation=self._isolation, timeout=limit)
        except (SdkError, ValueError) as error:
            raise client_error(req.connection_key, OSError(0, str(error))) from error
        protocol = self._factory()
        context = self._get_ssl_context(req)
        if context is None:
            transport = StreamTransport(stream, protocol)
            await asyncio.sleep(0)  # the protocol is told of its transport, before aiohttp writes
            return transport, protocol
        loop = asyncio.get_running_loop()
        name = (req.server_hostname or host or "").rstrip(".")
        plain = StreamTransport(stream, asyncio.Protocol())
        try:
            secret = await loop.start_tls(plain, protocol, context, server_hostname=name, ssl_handshake_timeout=limit)
        except OSError as error:
            plain.abort()
            kind = aiohttp.ClientConnectorCertificateError if isinstance(error, ssl.CertificateError) else None
            raise (kind or aiohttp.ClientConnectorSSLError)(req.connection_key, error) from error
        assert isinstance(secret, asyncio.Transport)
        protocol.connection_made(secret)
        return secret, protocol
