"""What stands on streams: asyncio's readers and writers with TLS, httpx, aiohttp, the waiting client, the socket-like object."""

import asyncio
import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from nyx.sdk import Client, Kind, RefusedError, TimedOutError, UnreachableError, sync
from nyx.sdk.aiohttp import NyxConnector
from nyx.sdk.httpx import NyxTransport
from tests.nyx.sdk.world import World, echo_server, run, world

BODY = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost with its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key", "-out", "certificate"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of a client that believes it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate", folder / "key")
    return server, ssl.create_default_context(cafile=str(folder / "certificate"))


@contextlib.asynccontextmanager
async def web_server(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP server that answers every request with its body, or BODY: its port, and the first lines of requests."""
    seen: list[bytes] = []
    writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers[task] = writer
        try:
            while line := await reader.readline():
                seen.append(line)
                size = 0
                while (header := await reader.readline()).strip():
                    if header.lower().startswith(b"content-length:"):
                        size = int(header.split(b":")[1])
                body = await reader.readexactly(size) if size else BODY
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for writer in writers.values():
            writer.transport.abort()
        await asyncio.gather(*writers)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_httpx(tmp_path: Path, secrets: Path, scheme: str) -> None:
    async def main(net: World, client: Client) -> None:
        ours, theirs = contexts(secrets)
        serving = web_server(ours if scheme == "https" else None)
        transport = NyxTransport(client, verify=theirs, isolation="one")
        async with serving as (port, seen), httpx.AsyncClient(transport=transport) as browser:
            url = f"{scheme}://localhost:{port}"
            answer = await browser.get(f"{url}/page")
            assert answer.status_code == 200
            assert answer.content == BODY
            assert (await browser.post(url, content=BODY[:999])).content == BODY[:999]
            assert seen[0] == b"GET /page HTTP/1.1\r\n"
            assert [host for _, host, _ in net.asked] == ["localhost"], "one name, resolved at the exit; one connection, kept"
            with pytest.raises(httpx.ConnectError, match="refused"):
                await browser.get("http://localhost:1/")
            with pytest.raises(httpx.ConnectError, match="resolved"):
                await browser.get("http://no-such-host.test/")
            net.circuits = None
            with pytest.raises(httpx.ConnectTimeout):
                await browser.get("http://localhost:2/", timeout=0.05)
            net.circuits = 0

    run(main, tmp_path)


def test_httpx_gives_a_late_answer_and_a_wrong_certificate_their_names(tmp_path: Path, secrets: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        ours, _ = contexts(secrets)
        silent, silent_port = await echo_server()
        async with web_server(ours) as (port, _seen), silent, httpx.AsyncClient(transport=NyxTransport(client)) as browser:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await browser.get(f"https://localhost:{port}/")
            with pytest.raises(httpx.RemoteProtocolError):
                await browser.get(f"http://localhost:{silent_port}/")
        over = asyncio.Event()

        async def wait(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await over.wait()
            writer.close()

        unanswered = await asyncio.start_server(wait, "127.0.0.1", 0)
        async with unanswered, httpx.AsyncClient(transport=NyxTransport(client)) as browser:
            with pytest.raises(httpx.ReadTimeout):
                await browser.get(f"http://localhost:{unanswered.sockets[0].getsockname()[1]}/", timeout=0.1)
            over.set()

    run(main, tmp_path)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_aiohttp(tmp_path: Path, secrets: Path, scheme: str) -> None:
    async def main(net: World, client: Client) -> None:
        ours, theirs = contexts(secrets)
        serving = web_server(ours if scheme == "https" else None)
        connector = NyxConnector(client, isolation="two", ssl=theirs)
        async with serving as (port, seen), aiohttp.ClientSession(connector=connector) as session:
            url = f"{scheme}://localhost:{port}"
            async with session.get(f"{url}/page") as answer:
                assert answer.status == 200
                assert await answer.read() == BODY
            async with session.post(url, data=BODY) as answer:
                assert await answer.read() == BODY
            assert seen[0] == b"GET /page HTTP/1.1\r\n"
            assert [host for _, host, _ in net.asked] == ["localhost"], "one name, resolved at the exit; one connection, kept"
            with pytest.raises(aiohttp.ClientConnectorError, match="refused"):
                await session.get("http://localhost:1/")
            if scheme == "https":
                async with aiohttp.ClientSession(connector=NyxConnector(client)) as doubter:
                    with pytest.raises(aiohttp.ClientConnectorCertificateError):
                        await doubter.get(f"https://localhost:{port}/")

    run(main, tmp_path)


def test_tls_on_a_reader_and_writer_and_flow_control(tmp_path: Path, secrets: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        ours, theirs = contexts(secrets)

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(str(len(await reader.readexactly(4_000_000))).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(count, "127.0.0.1", 0, ssl=ours)
        async with server:
            reader, writer = await client.open_connection("localhost", server.sockets[0].getsockname()[1])
            await writer.start_tls(theirs, server_hostname="localhost")
            assert writer.get_extra_info("peername")[0] == "localhost"
            for _ in range(400):
                writer.write(bytes(10_000))
                await writer.drain()
            assert await reader.read() == b"4000000"
            writer.close()

    run(main, tmp_path)


def test_a_writer_is_paused_until_the_target_reads(tmp_path: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        begin = asyncio.Event()

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await begin.wait()
            writer.write(str(len(await reader.readexactly(16 << 20))).encode())
            writer.close()

        server = await asyncio.start_server(count, "127.0.0.1", 0)
        async with server:
            reader, writer = await client.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            writer.write(bytes(16 << 20))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.drain(), 0.1)
            begin.set()
            await writer.drain()
            assert writer.transport.get_write_buffer_size() == 0
            assert await reader.read() == str(16 << 20).encode()
            writer.close()

    run(main, tmp_path)


# ---------------------------------------------------------------- without an event loop


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[tuple[int, list[bytes]]]:
    server, port = await echo_server()
    async with server:
        yield port, []


def waiting(main: Callable[[sync.Client, int], None], folder: Path, serve: Any) -> None:
    """Run a function with a waiting client in a thread, the world and a target in this one."""

    async def whole() -> None:
        async with world(folder) as made, serve() as (port, _):

            def work() -> None:
                with sync.Client(made.path, streams=4, ring=1 << 16) as client:
                    main(client, port)

            await asyncio.to_thread(work)

    asyncio.run(whole())


def test_the_waiting_client(tmp_path: Path) -> None:
    def main(client: sync.Client, port: int) -> None:
        seen: list[Kind] = []
        remove = client.on_event(lambda event: seen.append(event.kind))
        client.ready(5)
        assert client.connected
        assert client.circuits == 1
        with client.open_stream("127.0.0.1", port, isolation="x") as stream:
            stream.write(b"line\nrest")
            assert stream.readline() == b"line\n"
            assert stream.readexactly(2) == b"re"
            assert stream.readuntil(b"t") == b"st"
            buffer = bytearray(5)
            stream.write(b"12345678")
            assert stream.readinto(buffer) > 0
            stream.timeout = 0.05
            with pytest.raises(TimedOutError):
                stream.readexactly(1 << 20)
            stream.timeout = None
            stream.write_eof()
            assert b"".join(stream).endswith(b"8")
        stream.wait_closed()
        remove()
        assert Kind.STREAM_CLOSED in seen
        with pytest.raises(RefusedError):
            client.open_stream("10.0.0.1", 80)
        aborted = client.open_stream("127.0.0.1", port)
        aborted.abort()
        late = client.open_stream("127.0.0.1", port)
        before = threading.active_count()
        client.close()
        late.close()
        assert threading.active_count() == before - 1
        with pytest.raises(UnreachableError, match="not started"):
            client.open_stream("127.0.0.1", port)
        with pytest.raises(UnreachableError, match="closed"):
            late.read(1)

    waiting(main, tmp_path, echoing)


def test_a_waiting_client_without_a_daemon_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UnreachableError, match="no daemon"):
        sync.Client(tmp_path / "sdk.sock").start()
    assert threading.active_count() == before


def test_the_socket_like_object(tmp_path: Path) -> None:
    def main(client: sync.Client, port: int) -> None:
        with client.create_connection(("127.0.0.1", port), 5) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert sock.gettimeout() == 5
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(b"hello world")
            assert sock.recv(5) == b"hello"
            buffer = bytearray(20)
            assert sock.recv_into(buffer, 3) == 3
            assert buffer[:3] == b" wo"
            sock.settimeout(0.05)
            assert sock.recv(100) == b"rld"
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.setblocking(False)
            assert not sock.getblocking()
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.setblocking(True)
            with pytest.raises(OSError, match="descriptor"):
                sock.fileno()
            with sock.makefile("rwb") as file:
                file.write(b"one\ntwo\n")
                file.flush()
                assert file.readline() == b"one\n"
                sock.close()  # the file still holds it
                assert file.readline() == b"two\n"
            with pytest.raises(OSError, match="descriptor"):
                sock.recv(1)
        sock = client.create_connection(("127.0.0.1", port))
        with sock.makefile("w", encoding="ascii") as text:
            text.write("text")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("r", encoding="ascii").read() == "text"
        sock.shutdown(socket.SHUT_RD)
        assert sock.recv(1) == b""
        sock.close()

    waiting(main, tmp_path, echoing)


def test_http_client_over_the_socket_like_object(tmp_path: Path) -> None:
    def main(client: sync.Client, port: int) -> None:
        connection = http.client.HTTPConnection("localhost", port)
        connection.sock = client.create_connection(("localhost", port))
        connection.request("GET", "/")
        assert connection.getresponse().read() == BODY
        connection.request("POST", "/", body=b"again")
        assert connection.getresponse().read() == b"again"
        connection.close()

    waiting(main, tmp_path, web_server)


@pytest.fixture(autouse=True)
def _no_threads() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "nyx.sdk"]
