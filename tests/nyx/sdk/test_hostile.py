"""A process of the same user that breaks the protocol: it is dropped, the worker and its other applications go on."""

import asyncio
import mmap
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nyx.sdk import Client
from nyx.wire import sdk
from nyx.wire.sdk import DOWN_TAIL, UP_END, UP_HEAD, VERB, Hello, Verb, memory_size, slot_at, verb_word
from tests.nyx.sdk.world import World, echo_server, run

RING = sdk.RING_MIN
EDGES = [1, 2, 255, 256, 1 << 16, (1 << 16) + 1, 1 << 31, 1 << 32, 1 << 62, -1, -(1 << 63), (1 << 63) - 1]


class Raw:
    """An application that writes what it likes."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.connect(str(path))
        self.pages: mmap.mmap | None = None
        self.fds: list[int] = []

    async def said(self, net: World) -> bytes:
        """The next message, b"" at the end."""
        found: list[bytes] = []

        def look() -> bool:
            try:
                message, fds, _, _ = socket.recv_fds(self.sock, 4096, 8)
            except BlockingIOError:
                return False
            except ConnectionError:
                message, fds = b"", []
            found.append(message)
            self.fds += fds
            return True

        await net.come(look)
        return found[0]

    async def enter(self, net: World) -> None:
        self.sock.send(Hello(2, RING).encode())
        answer = sdk.decode_answer(await self.said(net))
        assert isinstance(answer, sdk.Welcome)
        self.pages = mmap.mmap(self.fds[0], memory_size(2, RING))

    def store(self, word: int, value: int, slot: int = 0) -> None:
        assert self.pages is not None
        struct.pack_into("<q", self.pages, slot_at(slot, RING) + 8 * word, value)

    def state(self) -> tuple[int, sdk.Phase, sdk.Outcome]:
        assert self.pages is not None
        return sdk.read_state(struct.unpack_from("<q", self.pages, slot_at(0, RING))[0])

    def wake(self) -> None:
        os.eventfd_write(self.fds[1], 1)

    def ask(self, host: bytes, port: int) -> None:
        assert self.pages is not None
        self.store(sdk.HOST_SIZE, len(host))
        self.store(sdk.PORT, port)
        at = slot_at(0, RING) + sdk.HOST
        self.pages[at : at + len(host)] = host
        self.store(VERB, verb_word(1, Verb.OPEN))
        self.wake()

    async def open(self, net: World, port: int) -> None:
        self.ask(b"127.0.0.1", port)
        await net.come(lambda: self.state()[1] is sdk.Phase.OPENED)

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        if self.pages:
            self.pages.close()


def against(folder: Path, attack: Callable[[World, Raw, int], object], *, welcome: bool = True, opened: bool = True) -> None:
    """Attack while an honest application talks; the attacker's socket ends, the other's stream does not."""

    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        raw = Raw(net.path)
        async with server, await client.open_stream("127.0.0.1", port) as honest:
            if welcome:
                await raw.enter(net)
            if opened:
                await raw.open(net, port)
            attack(net, raw, port)
            while last := await raw.said(net):
                assert b"error" in last or b"note" in last
            await honest.send(b"still here")
            assert await honest.readexactly(10) == b"still here"
            await net.come(lambda: len(net.client.edge.slots.guests) == 1)
        raw.close()

    run(main, folder)


@pytest.mark.parametrize(
    "message",
    [b"x", b"[]", b"{}", b"\xff" * 100, b'{"nyx":"sdk","version":99}', b"[" * 4000, Hello(0, RING).encode(),
     Hello(2, RING - 1).encode(), Hello(2, 1 << 40).encode(), Hello(257, RING).encode(), b'{"nyx":"sdk","slots":true}'],
)  # fmt: skip
def test_a_wrong_greeting(tmp_path: Path, message: bytes) -> None:
    against(tmp_path, lambda _net, raw, _port: raw.sock.send(message), welcome=False, opened=False)


def test_a_greeting_that_does_not_come(tmp_path: Path) -> None:
    def wait(net: World, _raw: Raw, _port: int) -> None:
        net.pass_time(0)
        net.now += 6 * 10**9

    against(tmp_path, wait, welcome=False, opened=False)


def test_a_second_message(tmp_path: Path) -> None:
    against(tmp_path, lambda _net, raw, _port: raw.sock.send(b"{}"))


@pytest.mark.parametrize("word", [UP_HEAD, DOWN_TAIL, UP_END])
@pytest.mark.parametrize("value", EDGES)
def test_words_that_cannot_be_right(tmp_path: Path, word: int, value: int) -> None:
    """One word, out of what the other words allow."""
    if (word == UP_HEAD and 0 <= value <= RING) or (word == UP_END and value == 1):
        value = -5  # those could be right: bytes that were put, the end of an empty stream

    def store(_net: World, raw: Raw, _port: int) -> None:
        raw.store(word, value)
        raw.wake()

    against(tmp_path, store)


@pytest.mark.parametrize("value", [v for v in EDGES if v != verb_word(1, Verb.OPEN)])
def test_verbs_that_cannot_be_right(tmp_path: Path, value: int) -> None:
    def store(_net: World, raw: Raw, _port: int) -> None:
        raw.store(VERB, value)
        raw.wake()

    against(tmp_path, store)


def test_a_slot_used_again_before_its_end(tmp_path: Path) -> None:
    def store(_net: World, raw: Raw, _port: int) -> None:
        raw.store(VERB, verb_word(2, Verb.OPEN))
        raw.wake()

    against(tmp_path, store)


def test_noise_in_all_words_again_and_again(tmp_path: Path, rng: random.Random) -> None:
    """Whatever stands there at whatever moment: the honest stream goes on, and at the end nothing is left."""

    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        async with server, await client.open_stream("127.0.0.1", port) as honest:
            for _ in range(60):
                raw = Raw(net.path)
                await raw.enter(net)
                if rng.random() < 0.7:
                    await raw.open(net, port)
                for _ in range(rng.randrange(1, 30)):
                    word = rng.choice([VERB, UP_HEAD, UP_END, DOWN_TAIL, sdk.PORT, sdk.HOST_SIZE, sdk.STATE, sdk.UP_TAIL])
                    raw.store(word, rng.choice([*EDGES, 0, rng.getrandbits(62), rng.randrange(600)]), rng.randrange(2))
                    raw.wake()
                    if rng.random() < 0.5:
                        await asyncio.sleep(0)
                await honest.send(b"x")
                assert await honest.readexactly(1) == b"x"
                raw.close()
            await net.come(lambda: len(net.client.edge.slots.guests) == 1)

    run(main, tmp_path)


def test_requests_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    async def main(net: World, _client: Client) -> None:
        for host, port in ((b"", 80), (b"a b", 80), (b"x", 0), (b"x", -1), (b"x", 1 << 40), (b"\xff", 80)):
            raw = Raw(net.path)
            await raw.enter(net)
            raw.ask(host, port)
            while raw.state()[1] is not sdk.Phase.ENDED:  # noqa: ASYNC110  # see World.come
                await asyncio.sleep(0)
            assert raw.state() == (1, sdk.Phase.ENDED, sdk.Outcome.BAD_REQUEST)
            raw.close()

    run(main, tmp_path)


def test_the_memory_cannot_be_cut_short_and_the_wake_up_not_blocked(tmp_path: Path) -> None:
    async def main(net: World, client: Client) -> None:
        server, port = await echo_server()
        raw = Raw(net.path)
        async with server:
            await raw.enter(net)
            for size in (0, memory_size(2, RING) + 4096):
                with pytest.raises(PermissionError):
                    os.ftruncate(raw.fds[0], size)
            await raw.open(net, port)
            os.set_blocking(raw.fds[1], True)
            os.eventfd_write(raw.fds[1], (1 << 64) - 3)  # full: nobody can signal it any more
            async with await client.open_stream("127.0.0.1", port) as honest:
                await honest.send(b"x")
                assert await honest.readexactly(1) == b"x"
        raw.close()

    run(main, tmp_path)


def test_more_applications_than_there_is_room_for(tmp_path: Path) -> None:
    async def main(net: World, _client: Client) -> None:
        raws = []
        for _ in range(15):
            raws.append(Raw(net.path))
            await raws[-1].enter(net)
        late = Raw(net.path)
        answer = sdk.decode_answer(await late.said(net))
        assert isinstance(answer, sdk.Refusal)
        assert answer.error == "busy"
        raws.pop().close()
        await net.come(lambda: len(net.client.edge.slots.guests) == 15)
        again = Raw(net.path)
        await again.enter(net)
        for raw in (*raws, late, again):
            raw.close()

    run(main, tmp_path)
