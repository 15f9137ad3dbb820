"""The control process's ends of its SOCK_SEQPACKET channels: to each worker, and to the supervisor. Questions with deadlines.

The other side may be dead, restarting or mute at any time: then a question ends in `WorkerSilentError` after its deadline and a
late answer is dropped, as its id is no longer waited for. What it may send is bounded: one message at a time, PAGES_MAX pages.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from nyx.errors import NyxError, RemoteProtocolError
from nyx.wire import admin, envelope, orders

DEADLINE: Final = 2.0  # seconds for a worker to answer
RESTART_DEADLINE: Final = 20.0  # seconds for the supervisor to have a worker's next life
UPGRADE_DEADLINE: Final = 320.0  # seconds for the supervisor: it may compile new kernels first
PAGES_MAX: Final = 4096  # of 64 KiB: more rows than any worker's columns hold


class WorkerSilentError(NyxError):
    """The worker did not answer in time, or its channel is gone."""


class WorkerRefusedError(NyxError):
    """The worker answered that it cannot."""


class Channel:
    """Questions to one worker, or orders to the supervisor; `run` reads answers and must be running for `ask` to end."""

    name: str

    def __init__(self, worker: int, end: socket.socket, deadline: float = DEADLINE) -> None:
        self.worker = worker
        self.name = f"worker {worker}"
        self._socket = end
        self._socket.setblocking(False)  # noqa: FBT003  the standard library names it so
        self._deadline = deadline
        self._next = 1
        self._waiting: dict[int, asyncio.Queue[admin.Answer]] = {}
        self.closed = False

    async def run(self) -> None:
        """Read answers until the channel ends."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                message = await loop.sock_recv(self._socket, envelope.MESSAGE_MAX + 1)
            except OSError:
                message = b""
            if not message:
                self.closed = True
                return
            self._take(message)

    def _take(self, message: bytes) -> None:
        try:
            answer = admin.decode_answer(message)
        except RemoteProtocolError:
            return
        if queue := self._waiting.get(answer.id):
            queue.put_nowait(answer)

    async def ask(self, op: admin.Op, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's data, lists of several pages joined. Raises WorkerSilentError, WorkerRefusedError."""
        return await self._exchange(lambda number: admin.Request(number, op, args or {}).encode(), self._deadline)

    async def _exchange(self, encode: Callable[[int], bytes], deadline: float) -> dict[str, Any]:
        if self.closed:
            raise WorkerSilentError(f"{self.name} is gone")
        number, self._next = self._next, self._next + 1
        queue = self._waiting[number] = asyncio.Queue()
        try:
            async with asyncio.timeout(deadline):
                await asyncio.get_running_loop().sock_sendall(self._socket, encode(number))
                return await self._collect(queue)
        except TimeoutError as error:
            raise WorkerSilentError(f"{self.name} does not answer") from error
        except OSError as error:
            raise WorkerSilentError(f"{self.name} cannot be asked: {error.strerror}") from error
        finally:
            del self._waiting[number]

    @staticmethod
    async def _collect(queue: "asyncio.Queue[admin.Answer]") -> dict[str, Any]:
        data: dict[str, Any] = {}
        for _ in range(PAGES_MAX):
            answer = await queue.get()
            if answer.error is not None:
                raise WorkerRefusedError(answer.error)
            for key, value in answer.data.items():
                data[key] = data[key] + value if isinstance(data.get(key), list) and isinstance(value, list) else value
            if not answer.more:
                return data
        raise WorkerRefusedError("too long an answer")


class Supervisor(Channel):
    """Orders to the supervisor; `on_notice` is called with what it tells unasked."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(-1, end)
        self.name = "the supervisor"
        self.on_notice: Callable[[orders.Notice], None] | None = None

    async def order(self, op: orders.Order, args: Mapping[str, Any], deadline: float = DEADLINE) -> dict[str, Any]:
        """What it answered. Raises WorkerSilentError, WorkerRefusedError."""
        return await self._exchange(lambda number: orders.Message(number, op, args).encode(), deadline)

    def _take(self, message: bytes) -> None:
        try:
            found = orders.decode(message, orders.Notice)
        except RemoteProtocolError:
            super()._take(message)
            return
        if self.on_notice:
            self.on_notice(orders.Notice(found.op))
