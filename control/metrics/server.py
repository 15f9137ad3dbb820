"""The metrics' HTTP server: GET /metrics and nothing else, for whoever may reach its address, at a bounded cost.

It is made for one kind of client, Prometheus. A request must fit REQUEST_MAX bytes and come within REQUEST_TIME; connections are
counted and each carries one answer; what is told is at most FRESH seconds old and made once for all who ask meanwhile.
A web page must not read it through a visitor's browser: a Host that is a name may be a rebound one, so only localhost and
numeric addresses that this very connection arrived at are served, and nothing that says an Origin. Source: RFC 9110, RFC 9112.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

PATH: Final = "/metrics"
CONNECTIONS_MAX: Final = 16
REQUEST_MAX: Final = 8192  # bytes of request line and header fields
HEADERS_MAX: Final = 64
REQUEST_TIME: Final = 5.0  # seconds for the whole request
ANSWER_TIME: Final = 10.0  # seconds for the whole answer to be taken
FRESH: Final = 0.5
RETRY: Final = 5.0  # seconds until a port that was taken is tried again

_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,16}) (\S{1,2048}) HTTP/1\.([01])")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e]*)")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")

Render = Callable[[], Awaitable[bytes]]

_log: Final = logging.getLogger(__name__)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def check(request: bytes, arrived_at: str) -> None:
    """Let the one request pass that is served. Raises _RefusedError. `arrived_at`: our numeric address of the connection."""
    head, *lines = request.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    line = _REQUEST_LINE.fullmatch(head)
    fields = [_FIELD.fullmatch(text) for text in lines]
    if line is None or None in fields or len(fields) > HEADERS_MAX:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
    found = [(field[1].lower(), field[2].strip()) for field in fields if field]
    hosts = [value for name, value in found if name == "host"]
    if len(hosts) != 1 or not _host_is_ours(hosts[0], arrived_at):
        raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "ask by the numeric address of this server, or as localhost")
    if any(name == "origin" for name, _ in found):
        raise _RefusedError(HTTPStatus.FORBIDDEN, "web pages are not served")
    if line[1] != "GET":
        raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is served")
    if line[2] != PATH:
        raise _RefusedError(HTTPStatus.NOT_FOUND, f"there is {PATH} and nothing else")


def _host_is_ours(host: str, arrived_at: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]")
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address == ipaddress.ip_address(arrived_at.partition("%")[0])


def _answer(status: HTTPStatus, body: bytes, kind: str) -> bytes:
    fields = [
        f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close",
        "Cache-Control: no-store", "X-Content-Type-Options: nosniff", "Cross-Origin-Resource-Policy: same-origin",
    ]  # fmt: skip
    return "\r\n".join([*fields, "", ""]).encode() + body


class MetricsServer:
    """Serves what `render` makes at one address. `problem` says why it does not, where it does not."""

    def __init__(self, listen: tuple[str, int], render: Render, content_type: str) -> None:
        self._listen = listen
        self._render = render
        self._content_type = content_type
        self._connections = 0
        self._lock = asyncio.Lock()
        self._made = (float("-inf"), b"")
        self.problem: str | None = None

    async def run(self) -> None:
        """Serve until cancelled; a port that another program holds is tried again now and then."""
        while True:
            try:
                server = await asyncio.start_server(self._serve, sock=self._bind(), limit=REQUEST_MAX)
            except OSError as error:
                self._report(f"metrics.listen: {error.strerror or error}: metrics are not served until that is mended")
                await asyncio.sleep(RETRY)
                continue
            self.problem = None
            async with server:
                await server.serve_forever()

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            _log.error("%s", problem)
        self.problem = problem

    def _bind(self) -> socket.socket:
        host, port = self._listen
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
        return sock

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away or fell silent
        finally:
            self._connections -= 1
            writer.transport.abort()  # harmless to one that ended well

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIME):
                request = await reader.readuntil(b"\r\n\r\n")
            check(request, writer.get_extra_info("sockname")[0])
            answer = _answer(HTTPStatus.OK, await self._text(), self._content_type)
        except asyncio.LimitOverrunError:
            text = f"a request has at most {REQUEST_MAX} bytes\n"
            answer = _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text.encode(), "text/plain")
        except _RefusedError as error:
            answer = _answer(error.status, f"{error}\n".encode(), "text/plain")
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            raise
        except Exception:  # noqa: BLE001  a bug here must not end the control process
            _log.exception("the metrics could not be made")
            answer = _answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"this request met a bug; the node's log has it\n", "text/plain")
        writer.write(answer)
        async with asyncio.timeout(ANSWER_TIME):
            await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _text(self) -> bytes:
        async with self._lock:
            if time.monotonic() - self._made[0] > FRESH:
                self._made = (time.monotonic(), await self._render())
            return self._made[1]
