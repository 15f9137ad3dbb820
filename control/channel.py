"""The control process's end of its SOCK_SEQPACKET channel to one worker: questions with deadlines, answers in pages.

The worker may be dead, restarting or mute at any time: then a question ends in `WorkerSilentError` after its deadline and a late
answer is dropped, as its id is no longer waited for. What a worker may send is bounded: one message at a time, PAGES_MAX pages.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final

from nyx.errors import NyxError, RemoteProtocolError
from nyx.wire import admin

DEADLINE: Final = 2.0  # seconds for a worker to answer
PAGES_MAX: Final = 4096  # of 64 KiB: more rows than any worker's columns hold


class WorkerSilentError(NyxError):
    """The worker did not answer in time, or its channel is gone."""


class WorkerRefusedError(NyxError):
    """The worker answered that it cannot."""


class Channel:
    """Questions to one worker; `run` reads its answers and must be running for `ask` to end."""

    def __init__(self, worker: int, end: socket.socket, deadline: float = DEADLINE) -> None:
        self.worker = worker
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
                message = await loop.sock_recv(self._socket, admin.MESSAGE_MAX + 1)
            except OSError:
                message = b""
            if not message:
                self.closed = True
                return
            try:
                answer = admin.decode_answer(message)
            except RemoteProtocolError:
                continue
            if queue := self._waiting.get(answer.id):
                queue.put_nowait(answer)

    async def ask(self, op: admin.Op, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's data, lists of several pages joined. Raises WorkerSilentError, WorkerRefusedError."""
        if self.closed:
            raise WorkerSilentError(f"worker {self.worker} is gone")
        number, self._next = self._next, self._next + 1
        queue = self._waiting[number] = asyncio.Queue()
        try:
            async with asyncio.timeout(self._deadline):
                await asyncio.get_running_loop().sock_sendall(self._socket, admin.Request(number, op, args or {}).encode())
                return await self._collect(queue)
        except TimeoutError as error:
            raise WorkerSilentError(f"worker {self.worker} does not answer") from error
        except OSError as error:
            raise WorkerSilentError(f"worker {self.worker} cannot be asked: {error.strerror}") from error
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
