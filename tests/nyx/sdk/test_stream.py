"""Streams of the SDK: bytes both ways, ends, errors, time limits, cancellation."""

import asyncio
import contextlib
import hashlib
import random
from pathlib import Path

import pytest

from nyx.kernel import PLAIN
from nyx.sdk import Client, Event, Kind, NotReadyError, Outcome, RefusedError, ResetError, TimedOutError, UnreachableError
from nyx.wire.sdk import RING_MIN
from shards.edge.reasons import Reason
from shards.edge.request import Refused
from tests.nyx.sdk.world import RealWorld, World, echo_server, run
from tests.shards.edge.bench import reset


def in_use(client: Client) -> int:
    """Slots that the client's connection has given to streams."""
    return len(client._connection.streams) if client._connection else -1


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


OPENS = 400 if PLAIN else 10_000
BLOCK = bytes(range(256)) * 4096 + b"end"  # 1 MiB: many times every ring on the way


def test_an_echo_of_a_mebibyte_and_half_closes(tmp_path: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, await client.open_stream("127.0.0.1", port) as stream:

            async def send() -> None:
                await stream.send(BLOCK)
                stream.write_eof()

            sending = asyncio.create_task(send())
            assert await stream.read() == BLOCK
            assert await stream.read(10) == b""
            assert stream.at_eof()
            await sending

    run(main, tmp_path)


def test_reads_of_every_kind(tmp_path: Path, rng: random.Random) -> None:
    async def main(_net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, await client.open_stream("127.0.0.1", port) as stream:
            text = b"one\ntwo\r\nthree--four"
            for byte in text:  # in pieces, so that separators come in two
                await stream.send(bytes([byte]))
            assert await stream.readline() == b"one\n"
            assert await stream.readuntil(b"\r\n") == b"two\r\n"
            assert await stream.readuntil(b"--") == b"three--"
            assert await stream.readexactly(2) == b"fo"
            stream.write(BLOCK)
            assert await stream.read(0) == b""
            assert await stream.readexactly(2) == b"ur"
            got = bytearray()
            while len(got) < len(BLOCK):
                buffer = bytearray(rng.randrange(1, 9000))
                count = await stream.readinto(buffer)
                got += buffer[:count]
            assert got == BLOCK
            stream.write(b"last\nrest")
            stream.write_eof()
            assert [part async for part in stream] != []
            assert await stream.readline() == b""
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.readexactly(1)

    run(main, tmp_path)


def test_what_comes_before_the_end_is_in_the_error(tmp_path: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            for read in ("exactly", "until", "line"):
                async with await client.open_stream("127.0.0.1", port) as stream:
                    await stream.send(b"short")
                    stream.write_eof()
                    if read == "line":
                        assert await stream.readline() == b"short"
                        continue
                    with pytest.raises(asyncio.IncompleteReadError) as found:
                        await (stream.readexactly(9) if read == "exactly" else stream.readuntil(b"!"))
                    assert found.value.partial == b"short"

    run(main, tmp_path)


def test_a_line_longer_than_a_ring_is_an_error_and_stays(tmp_path: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, await client.open_stream("127.0.0.1", port) as stream:
            stream.write(bytes(2 * RING_MIN))
            with pytest.raises(asyncio.LimitOverrunError):
                await stream.readline()
            assert await stream.readexactly(2 * RING_MIN) == bytes(2 * RING_MIN)

    run(main, tmp_path)


def test_a_cancelled_or_late_read_loses_no_byte(tmp_path: Path) -> None:
    async def main(_net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, await client.open_stream("127.0.0.1", port) as stream:
            big = 3 * RING_MIN
            stream.write(BLOCK[: big // 2])
            reading = asyncio.create_task(stream.readexactly(big))
            await asyncio.sleep(0.05)
            assert not reading.done()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            stream.timeout = 0.02
            with pytest.raises(TimedOutError):
                await stream.readexactly(big)
            with pytest.raises(TimedOutError):
                await stream.readuntil(b"never")
            stream.timeout = None
            stream.write(BLOCK[big // 2 : big])
            assert await stream.readexactly(big) == BLOCK[:big]

    run(main, tmp_path)


def test_a_reader_that_stands_still_holds_the_writer_back(tmp_path: Path) -> None:
    """The target sends without end: what this end keeps is bounded, and nothing is lost when it reads again."""

    async def main(net: World, client: Client) -> None:
        sent = 0

        async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(BLOCK)
                    await writer.drain()
                    sent += len(BLOCK)

        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        async with server:
            stream = await client.open_stream("127.0.0.1", server.sockets[0].getsockname()[1])
            row = net.client.edge.table.live()[0]
            s = net.near.rows[row]
            await net.come(lambda: int(s["rx_tail"]) == RING_MIN and int(s["rx_ready"]) == RING_MIN + net.near.ring)
            before, got = sent, b""
            while len(got) < 3 * len(BLOCK):
                got += await stream.read(1 << 16)
            assert got[: 2 * len(BLOCK)] == 2 * BLOCK
            assert sent > before or sent > 3 * len(BLOCK) - 1
            stream.abort()

    run(main, tmp_path)


def test_a_target_that_stands_still_holds_the_application_back(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = net.target()
        stream = await client.open_stream("127.0.0.1", port)
        stream.timeout = 0.2
        with pytest.raises(TimedOutError):
            for _ in range(100):
                await stream.send(BLOCK)
        assert 0 < stream.unsent <= len(BLOCK)
        stream.abort()
        server.close()

    run(main, tmp_path)


# ---------------------------------------------------------------- refusals


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        cases = {
            ("no-such-host.test", 80): Outcome.HOST_UNREACHABLE,
            ("10.0.0.1", 80): Outcome.POLICY,
            ("127.0.0.1", 1): Outcome.CONNECTION_REFUSED,
            ("not a name", 80): Outcome.BAD_REQUEST,
        }
        for (host, port), outcome in cases.items():
            with pytest.raises(RefusedError, match=outcome.text) as found:
                await client.open_stream(host, port)
            assert found.value.outcome is outcome
        for host, port in (("", 80), ("x" * 300, 80), ("localhost", 0), ("localhost", 65536)):
            with pytest.raises(ValueError, match="target"):
                await client.open_stream(host, port)
        net.circuits = Refused(Reason.NO_CIRCUIT)
        with pytest.raises(NotReadyError, match="circuit"):
            await client.open_stream("127.0.0.1", 80)

    run(main, tmp_path)


def test_a_request_waits_for_its_circuit_and_not_for_ever(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            net.circuits = None
            opening = asyncio.create_task(client.open_stream("127.0.0.1", port, isolation="a"))
            await net.come(lambda: net.client.edge.collect()["waiting"] == 1)
            net.circuits = 0
            net.client.edge.on_circuit_ready(net.now)
            (await opening).close()
            net.circuits = None
            opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
            await net.come(lambda: net.client.edge.collect()["waiting"] == 1)
            net.now += 16 * 10**9
            with pytest.raises(NotReadyError, match="in time"):
                await opening
            assert net.asked[0][0] != net.asked[-1][0] == b""

    run(main, tmp_path)


@pytest.mark.parametrize("moment", ["before the worker looked", "without a circuit", "without an answer"])
def test_a_cancelled_open_is_given_up_by_the_worker(tmp_path: Path, moment: str) -> None:
    async def main(net: World, client: Client) -> None:
        _server, port = net.target()
        net.circuits = None if moment == "without a circuit" else 0
        if moment == "without an answer":
            net.exit_waits = True
        opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
        edge = net.client.edge
        if moment == "without a circuit":
            await net.come(lambda: edge.collect()["waiting"] == 1)
        elif moment == "without an answer":
            await net.come(lambda: edge.sdk.opening == 1)
        else:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await net.come(lambda: edge.sdk.waiting + edge.sdk.opening == 0)
        await net.come(lambda: in_use(client) == 0)
        net.exit_waits = False

    run(main, tmp_path)


def test_an_open_that_takes_too_long_for_the_caller(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        net.circuits = None
        with pytest.raises(TimedOutError):
            await client.open_stream("127.0.0.1", 9, timeout=0.05)
        await net.come(lambda: net.client.edge.sdk.waiting == 0)

    run(main, tmp_path)


# ---------------------------------------------------------------- ends


def test_a_reset_of_the_target_comes_after_what_it_sent(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = net.target()
        opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
        await net.come(opening.done)
        stream = opening.result()
        target = net.accept(server)
        target.send(b"some")
        assert await stream.readexactly(4) == b"some"
        reset(target)
        with pytest.raises(ResetError) as found:
            await stream.read(1)
        assert found.value.outcome is Outcome.TARGET_RESET
        with pytest.raises(ResetError):
            stream.write(b"x")
        stream.close()

    run(main, tmp_path)


def test_a_lost_circuit_is_a_reset(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            stream = await client.open_stream("127.0.0.1", port)
            net.near.cut(0)
            with pytest.raises(ResetError) as found:
                await stream.read(1)
            assert found.value.outcome is Outcome.CIRCUIT_LOST

    run(main, tmp_path)


def test_close_delivers_what_was_written_and_reads_no_more(tmp_path: Path) -> None:
    """More than all rings hold: it is still on its way when the application closes, and even disconnects."""

    async def main(net: World, client: Client) -> None:
        digest, over = hashlib.sha256(), asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"unread")
            while data := await reader.read(1 << 12):
                digest.update(data)
                await asyncio.sleep(0)
            over.set()
            writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        async with server:
            stream = await client.open_stream("127.0.0.1", server.sockets[0].getsockname()[1])
            stream.write(BLOCK)
            stream.close()
            with pytest.raises(ValueError, match="closed"):
                await stream.read(1)
            with pytest.raises(ValueError, match="end"):
                stream.write(b"x")
            await client.close()
            await asyncio.wait_for(over.wait(), 20)
            assert digest.digest() == hashlib.sha256(BLOCK).digest()

    run(main, tmp_path)


def test_an_application_that_vanishes_resets_what_it_did_not_close(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = net.target()
        stream = await client.open_stream("127.0.0.1", port)
        target = net.accept(server)
        await stream.send(b"torn")
        assert net.read(target, 4) == b"torn"
        connection = client._connection
        assert connection is not None
        connection._sock.shutdown(2)
        assert net.end_of(target) == "reset"

    run(main, tmp_path)


def test_a_stream_closed_event_and_a_full_client(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        seen: list[Event] = []
        client.on_event(seen.append)
        async with server:
            streams = [await client.open_stream("127.0.0.1", port) for _ in range(8)]
            with pytest.raises(NotReadyError, match="all 8 streams"):
                await client.open_stream("127.0.0.1", port, timeout=0.05)
            waiting = asyncio.create_task(client.open_stream("127.0.0.1", port))
            for stream in streams:
                stream.close()
                await stream.wait_closed()
            (await waiting).abort()
            await net.come(lambda: sum(e.kind is Kind.STREAM_CLOSED for e in seen) == 9)

    run(main, tmp_path)


def test_the_worker_bounds_the_streams_of_all_applications(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, Client(net.path, streams=8, ring=RING_MIN) as second:
            streams = [await c.open_stream("127.0.0.1", port) for c in (client, second, client)]
            with pytest.raises(NotReadyError, match="max_streams"):
                await second.open_stream("127.0.0.1", port)
            for stream in streams:
                stream.close()

    run(main, tmp_path, max_streams=3)


def test_thousands_of_opens_leave_nothing(tmp_path: Path) -> None:
    """Refused, cancelled and answered ones in turn; the descriptors of this process are the measure."""

    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()

        async def one(number: int) -> None:
            if number % 3 == 0:
                stream = await client.open_stream("127.0.0.1", port)
                await stream.send(b"x")
                assert await stream.readexactly(1) == b"x"
                stream.close()
            elif number % 3 == 1:
                with pytest.raises(RefusedError):
                    await client.open_stream("10.0.0.1", 80)
            else:
                opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await opening).abort()

        async with server:
            await one(0)
            before = open_descriptors()
            for start in range(0, OPENS, 8):
                await asyncio.gather(*(one(start + k) for k in range(8)))
            await net.come(lambda: in_use(client) == 0)
            await net.come(lambda: open_descriptors() <= before + 16)

    run(main, tmp_path, kind=RealWorld)


def test_a_processor_that_reorders_stores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(net: World, _client: Client) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("platform.machine", lambda: "aarch64")
            with pytest.raises(UnreachableError, match="x86-64"):
                await Client(net.path).start()
        await net.come(lambda: len(net.client.edge.slots.guests) == 1)

    run(main, tmp_path)


def test_no_daemon_is_a_clear_error(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(UnreachableError, match="no daemon runs here"):
            await Client(tmp_path / "sdk.sock").start()
        with pytest.raises(UnreachableError, match="not started"):
            await Client(tmp_path / "sdk.sock").open_stream("localhost", 80)

    asyncio.run(main())
