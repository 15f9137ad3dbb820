"""A worker's next life on the same columns and descriptors, the daemon's end, and what the client makes of both."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from nyx.sdk import Client, Event, Kind, StreamLostError, UnreachableError
from tests.nyx.sdk.world import RealWorld, World, echo_server, run, world


@pytest.mark.parametrize("kind", [World, RealWorld])
def test_streams_go_on_in_the_next_life(tmp_path: Path, kind: type[World], rng: random.Random) -> None:
    """The edge is made anew at random moments of an echo; every byte comes back once."""

    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        seen: list[Event] = []
        client.on_event(seen.append)
        block = rng.randbytes(1 << 19)
        async with server, await client.open_stream("127.0.0.1", port) as stream:
            other = await client.open_stream("127.0.0.1", port)

            async def send() -> None:
                for at in range(0, len(block), 5000):
                    await stream.send(block[at : at + 5000])
                    if at % 25000 == 0:
                        net.restart()
                stream.write_eof()

            sending = asyncio.create_task(send())
            assert await stream.read() == block
            await sending
            other.close()
            net.restart()
            await other.wait_closed()
            assert net.lives > 20
            assert Kind.WORKER_RESTARTED in [event.kind for event in seen]

    run(main, tmp_path, kind=kind)


@pytest.mark.parametrize("moment", ["unseen", "without a circuit", "without an answer"])
def test_requests_go_on_in_the_next_life(tmp_path: Path, moment: str) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            net.circuits = None if moment == "without a circuit" else 0
            net.exit_waits = moment == "without an answer"
            opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
            if moment == "unseen":
                await asyncio.sleep(0)
            else:
                await net.come(lambda: net.client.edge.sdk.waiting + net.client.edge.sdk.opening == 1)
            net.restart()
            net.circuits = 0
            net.exit_waits = False
            net.client.edge.on_circuit_ready(net.now)
            async with await opening as stream:
                await stream.send(b"x")
                assert await stream.readexactly(1) == b"x"

    run(main, tmp_path)


def test_ends_that_the_dead_worker_did_not_settle(tmp_path: Path) -> None:
    """Closed, aborted and vanished while no worker lived."""

    async def main(net: World, client: Client) -> None:
        server, port = net.target()
        streams = [await client.open_stream("127.0.0.1", port) for _ in range(3)]
        targets = [net.accept(server) for _ in range(3)]
        streams[0].write(b"last words")
        streams[0].close()
        streams[1].abort()
        assert client._connection is not None
        client._connection._sock.shutdown(2)
        net.restart()
        assert net.read(targets[0], 100) == b"last words"
        assert net.end_of(targets[1]) == "reset"
        assert net.end_of(targets[2]) == "reset"

    run(main, tmp_path)


def test_a_worker_that_rests_leaves_requests_to_the_next_life(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            net.client.edge.rest()
            opening = asyncio.create_task(client.open_stream("127.0.0.1", port))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not opening.done()
            net.restart()
            (await opening).close()

    run(main, tmp_path)


@pytest.mark.parametrize("why", ["another table of descriptors", "no memory"])
def test_an_application_that_cannot_be_kept_connects_again(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server:
            stream = await client.open_stream("127.0.0.1", port)
            connection = client._connection
            assert connection is not None
            with monkeypatch.context() as patch:
                if why == "no memory":
                    patch.setattr("shards.edge.guest.mmap", SimpleNamespace(mmap=no_memory))
                else:
                    net.near.columns["edge_guests"]["memory_inode"] += 1
                net.restart()
            if why != "no memory":
                connection._sock.shutdown(2)  # as the kernel does when the table goes
            with pytest.raises(StreamLostError):
                await stream.read(1)
            (await client.open_stream("127.0.0.1", port)).close()

    def no_memory(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    run(main, tmp_path)


def test_the_daemon_goes_and_comes_back(tmp_path: Path) -> None:
    """Streams are lost by a clear error, what came before can be read; the client connects again and opens new ones."""

    async def main() -> None:
        async with world(tmp_path, tidy=False) as first:
            client = Client(first.path, streams=4, ring=1 << 16)
            events = client.events()
            next_event = asyncio.ensure_future(anext(events))
            await client.start()
            server, port = await echo_server()
            stream = await client.open_stream("127.0.0.1", port)
            stream.write(b"came back")
            assert await stream.readexactly(4) == b"came"
            await first.come(lambda: stream._slot is not None and stream._slot.available == 5)
            assert (await next_event).kind is Kind.CIRCUITS
            assert (await anext(events)).kind is Kind.READY
        assert await stream.readexactly(5) == b" back"
        with pytest.raises(StreamLostError, match="shutting down"):
            await stream.read(1)
        with pytest.raises(StreamLostError):
            stream.write(b"x")
        with pytest.raises(UnreachableError):
            await client.open_stream("127.0.0.1", port, timeout=0.05)
        opening = asyncio.create_task(client.open_stream("127.0.0.1", port, timeout=20))
        async with world(tmp_path, boot="another"):
            async with server, await opening as again:
                await again.send(b"x")
                assert await again.readexactly(1) == b"x"
            kinds = [(await anext(events)).kind for _ in range(5)]
            assert Kind.DAEMON_LOST in kinds
            assert Kind.DAEMON_RESTARTED in kinds
            await events.aclose()
            await client.close()

    asyncio.run(main())


def test_a_callback_can_be_taken_back_and_a_slow_iterator_loses_the_oldest(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        seen: list[Event] = []
        remove = client.on_event(seen.append)
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for number in range(600):
            net.ready = number + 2
            net.client.edge.on_circuit_ready(net.now)
            await net.come(lambda: client.circuits == net.ready)
        remove()
        assert len(seen) >= 598
        before = len(seen)
        assert (await first).circuits == 2
        assert (await anext(events)).circuits > 300
        net.ready = 0
        await net.come(lambda: client.circuits == 0)
        assert len(seen) == before
        await events.aclose()

    run(main, tmp_path)
