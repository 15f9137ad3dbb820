"""The SDK on a running network: bytes both ways, many streams, deaths of workers and of the daemon, refusals, other users."""

import asyncio
import contextlib
import hashlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from bench.network import ROOT, Network, command_environment, free_port, nyxctl, running_network
from bench.stream import children
from nyx.sdk import Client, Event, Kind, Outcome, RefusedError, Stream, StreamLostError, TimedOutError, UnreachableError, sync
from nyx.sdk.aiohttp import NyxConnector
from nyx.sdk.httpx import NyxTransport
from tests.e2e.conftest import blob, blob_digest

pytestmark = pytest.mark.timeout(180)

DOWNLOAD = 40 << 20
UPLOAD = 20 << 20


@pytest.fixture(scope="module")
def sock(network: Network) -> Path:
    return socket_of(network)


def socket_of(network: Network) -> Path:
    return next(Path(node["socket"]).parent / "sdk.sock" for node in network.nodes() if node["role"] == "client")


def supervisor_of(network: Network) -> int:
    return next(int(node["pid"]) for node in network.nodes() if node["role"] == "client")


def descendant(supervisor: int, role: str) -> int:
    """Pid of the process of this role in a node."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(supervisor)}
    return next(pid for pid, title in titles.items() if title.startswith(f"nyxd: {role}".encode()))


def with_client(sock: Path, main: Callable[[Client], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Client(sock) as client:
            await client.ready()
            await main(client)

    asyncio.run(whole())


async def ask(client: Client, web: str, request: str, body: bytes = b"", **options: str) -> Stream:
    """A stream on which the request was sent and the answer's head was read."""
    stream = await client.open_stream("localhost", int(web.rpartition(":")[2]), **options)  # type: ignore[arg-type]
    await stream.send(f"{request} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    await stream.send(body)
    assert b"200" in await stream.readline()
    while (await stream.readline()).strip():
        pass
    return stream


async def digest_of(stream: Stream, pause: float = 0) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    async for data in stream:
        digest.update(data)
        size += len(data)
        if pause:
            await asyncio.sleep(pause * len(data))
    stream.close()
    return size, digest.hexdigest()


def test_a_download_and_an_upload_arrive_unchanged(sock: Path, web: str) -> None:
    async def main(client: Client) -> None:
        assert await digest_of(await ask(client, web, f"GET /blob/{DOWNLOAD}")) == (DOWNLOAD, blob_digest(DOWNLOAD))
        body = bytes(blob(UPLOAD, seed=5))
        stream = await ask(client, web, "PUT /", body)
        assert (await stream.read()).decode() == hashlib.sha256(body).hexdigest()

    with_client(sock, main)


def test_asyncio_reader_and_writer_and_half_close(sock: Path) -> None:
    async def main(client: Client) -> None:
        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await reader.read()
            writer.write(str(len(data)).encode())
            writer.close()

        server = await asyncio.start_server(count, "127.0.0.1", 0)
        async with server:
            reader, writer = await client.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            writer.write(bytes(3 << 20))
            await writer.drain()
            writer.write_eof()
            assert await reader.read() == str(3 << 20).encode()
            writer.close()
            await writer.wait_closed()

    with_client(sock, main)


def test_fifty_streams_at_once_with_isolation(network: Network, sock: Path, web: str) -> None:
    async def main(client: Client) -> None:
        size = 300_000

        async def one(number: int) -> tuple[int, str]:
            return await digest_of(await ask(client, web, f"GET /blob/{size}", isolation=f"key {number % 3}"))

        found = await asyncio.gather(*(one(number) for number in range(50)))
        assert found == 50 * [(size, blob_digest(size))]

    before = {circuit["id"] for circuit in network.ask("circuits")["circuits"]}
    with_client(sock, main)
    assert {circuit["id"] for circuit in network.ask("circuits")["circuits"]} - before, (
        "isolated streams need circuits of their own"
    )


def test_refusals_time_limits_and_cancellation(network: Network, sock: Path, web: str) -> None:
    async def main(client: Client) -> None:
        with pytest.raises(RefusedError) as refused:
            await client.open_stream("127.0.0.1", free_port())
        assert refused.value.outcome is Outcome.CONNECTION_REFUSED
        with pytest.raises(RefusedError) as unknown:
            await client.open_stream("no-such-host.invalid", 80)
        assert unknown.value.outcome is Outcome.HOST_UNREACHABLE
        stream = await client.open_stream("localhost", int(web.rpartition(":")[2]))
        stream.timeout = 0.2
        with pytest.raises(TimedOutError):
            await stream.read(1)
        stream.abort()
        for _ in range(20):
            opening = asyncio.create_task(client.open_stream("localhost", int(web.rpartition(":")[2]), isolation=os.urandom(4)))
            await asyncio.sleep(0.002)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await opening).abort()
        await stream.wait_closed()

    with_client(sock, main)
    deadline = time.monotonic() + 20
    while live := [row for row in network.ask("streams")["streams"] if row["state"] != "closed" and row["role"] == "client"]:
        assert time.monotonic() < deadline, live
        time.sleep(0.1)


def test_a_killed_worker_loses_no_byte(network: Network, sock: Path, web: str) -> None:
    """Both ways at once, the client's worker killed three times in the middle."""

    async def main(client: Client) -> None:
        seen: list[Event] = []
        client.on_event(seen.append)
        body = bytes(blob(UPLOAD, seed=6))
        down = asyncio.create_task(digest_of(await ask(client, web, f"GET /blob/{DOWNLOAD}"), pause=1e-7))
        up = asyncio.create_task(ask(client, web, "PUT /", body))
        for number in range(3):
            await asyncio.sleep(0.2)
            assert not down.done(), "the kill came too late to show anything"
            os.kill(descendant(supervisor, "worker"), signal.SIGKILL)
            async with asyncio.timeout(20):
                while [event.kind for event in seen].count(Kind.WORKER_RESTARTED) <= number:  # noqa: ASYNC110  # by callback
                    await asyncio.sleep(0.01)
        assert await down == (DOWNLOAD, blob_digest(DOWNLOAD))
        assert (await (await up).read()).decode() == hashlib.sha256(body).hexdigest()
        assert Kind.DAEMON_LOST not in [event.kind for event in seen]

    supervisor = supervisor_of(network)
    with_client(sock, main)


def test_a_killed_keeper_and_a_restarted_daemon(tmp_path: Path, web: str) -> None:
    """With the keeper the streams go, with the daemon everything: clear errors, then the client is connected again."""

    async def lost(client: Client, supervisor: int, role: str) -> None:
        stream = await ask(client, web, f"GET /blob/{1 << 30}")
        os.kill(descendant(supervisor, role), signal.SIGKILL)
        with pytest.raises(StreamLostError):
            while await stream.read(1 << 20):
                pass

    async def main(sock: Path, config: Path, supervisor: int) -> None:
        seen: list[Event] = []
        async with Client(sock) as client:
            client.on_event(seen.append)
            await client.ready()
            await lost(client, supervisor, "keeper")
            assert await digest_of(await ask(client, web, "GET /blob/1000")) == (1000, blob_digest(1000))
            assert Kind.RECONNECTED in [event.kind for event in seen]
            await lost(client, supervisor, "supervisor")
            with pytest.raises(UnreachableError):
                await client.open_stream("localhost", 80, timeout=0.2)
            again = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "shards.nyxd", "--config", str(config),
                cwd=ROOT, env=command_environment(), stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert await digest_of(await ask(client, web, "GET /blob/1000")) == (1000, blob_digest(1000))
                assert Kind.DAEMON_RESTARTED in [event.kind for event in seen]
            finally:
                again.terminate()
                await again.wait()

    with running_network(tmp_path, nodes=4) as network:
        config = network.folder / network.client() / "nyx.toml"
        asyncio.run(main(socket_of(network), config, supervisor_of(network)))


@pytest.mark.parametrize("order", [("upgrade",), ("restart", "worker", "0")])
def test_streams_go_on_over_an_upgrade_and_a_restart(network: Network, sock: Path, order: tuple[str, ...]) -> None:
    """Blocks go to an echo and back all the while; each comes back whole, on the same stream."""

    async def main(client: Client) -> None:
        seen: list[Event] = []
        client.on_event(seen.append)
        over = asyncio.Event()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            over.set()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, await client.open_stream("127.0.0.1", server.sockets[0].getsockname()[1]) as stream:
            stream.timeout = 60
            ordered = asyncio.create_task(asyncio.to_thread(nyxctl, "--socket", control, *order, timeout=150))
            blocks = 0
            while not ordered.done() or blocks < 20:
                block = os.urandom(50_000)
                sending = asyncio.create_task(stream.send(block))
                assert await stream.readexactly(len(block)) == block
                await sending
                blocks += 1
            await ordered
            stream.write_eof()
            assert await stream.read() == b""
            await over.wait()
            assert Kind.WORKER_RESTARTED in [event.kind for event in seen]
            assert Kind.DAEMON_LOST not in [event.kind for event in seen]

    control = next(str(node["socket"]) for node in network.nodes() if node["role"] == "client")
    with_client(sock, main)


def test_httpx_aiohttp_and_the_waiting_client_fetch(sock: Path, web: str) -> None:
    async def main(client: Client) -> None:
        async with httpx.AsyncClient(transport=NyxTransport(client)) as browser:
            answer = await browser.get(f"{web}/blob/{1 << 20}")
            assert hashlib.sha256(answer.content).hexdigest() == blob_digest(1 << 20)
        async with aiohttp.ClientSession(connector=NyxConnector(client)) as session, session.get(f"{web}/echo/aiohttp") as echo:
            assert await echo.read() == b"aiohttp"

    with_client(sock, main)
    with sync.Client(sock) as waiting:
        connection = http.client.HTTPConnection("localhost", int(web.rpartition(":")[2]))
        connection.sock = waiting.create_connection(("localhost", connection.port), 30)
        connection.request("GET", f"/blob/{1 << 20}")
        assert hashlib.sha256(connection.getresponse().read()).hexdigest() == blob_digest(1 << 20)
        connection.close()


def examples() -> list[str]:
    """The Python of README.md and docs/sdk.md; a part that needs a client gets one."""
    found = [
        b
        for name in ("README.md", "docs/sdk.md")
        for b in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    ]
    found = [block for block in found if "nyx.sdk" in block]
    for number, block in enumerate(found):
        if block.startswith(("import httpx", "import aiohttp")):
            imports, _, rest = block.partition("\n\n")
            body = "".join(f"        {line}\n" for line in rest.splitlines())
            head = (
                f"import asyncio\nfrom nyx.sdk import Client\n{imports}\nasync def main():\n    async with Client() as client:\n"
            )
            found[number] = (
                f"{head}{body}        print('HTTP', getattr(answer, 'status', 0) or answer.status_code)\nasyncio.run(main())\n"
            )
    return found


@pytest.mark.parametrize("number", range(5))
def test_the_examples_of_the_documents(sock: Path, web: str, number: int) -> None:
    assert len(examples()) == 5
    code = examples()[number].replace("8000", web.rpartition(":")[2]).replace("https://example.org/", f"{web}/echo/200")
    run = subprocess.run(
        [sys.executable, "-c", code], env=command_environment() | {"NYX_SDK_SOCKET": str(sock)}, cwd=ROOT, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "HTTP" in run.stdout, run


def test_another_user_is_refused(sock: Path, tmp_path: Path) -> None:
    """Not by the folder and the name alone: the worker looks at who connects."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    code = (
        "import os, socket, sys\n"
        "handle = os.open(sys.argv[1], os.O_PATH)\n"
        "os.chmod(sys.argv[1], 0o666)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "sock.settimeout(20)\n"
        "sock.connect(f'/proc/self/fd/{handle}')\n"
        'sock.send(b\'{"nyx":"sdk","version":1,"slots":1,"ring":65536}\')\n'
        "print(sock.recv(100))\n"
    )
    try:
        answer = subprocess.run([sys.executable, "-c", code, str(sock)], capture_output=True, text=True, check=False, timeout=60)
    finally:
        sock.chmod(0o600)
    assert answer.stdout == "b''\n" or "ConnectionResetError" in answer.stderr or "BrokenPipeError" in answer.stderr, answer


@pytest.fixture(autouse=True)
def _no_debris(sock: Path) -> Iterator[None]:
    yield
    assert sock.stat().st_mode & 0o777 == 0o600
