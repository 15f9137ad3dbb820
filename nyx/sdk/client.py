"""The client: finds the daemon, stays connected to it, opens streams.

    not connected --HELLO, WELCOME--> connected --the daemon goes--> not connected: again after a pause that grows, with jitter

Streams belong to the connection on which they were opened. They outlive a killed worker; when the daemon itself is gone they
raise StreamLostError, and the client has a connection for new ones as soon as the daemon is back.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nyx.sdk.connection import Connection, isolation_key
from nyx.sdk.errors import NotReadyError, RefusedError, StreamLostError, TimedOutError, UnreachableError
from nyx.sdk.events import Event, Events, Kind
from nyx.sdk.signal import Signal
from nyx.sdk.stream import Stream
from nyx.sdk.transport import open_streams
from nyx.wire.sdk import RING_DEFAULT, SLOTS_DEFAULT, Hello, Outcome

OPEN_TIME: Final = 60.0  # seconds
LINGER_TIME: Final = 5.0  # for what closed streams have not given to the daemon yet
BACK_OFF_FIRST: Final = 0.05
BACK_OFF_MOST: Final = 5.0
SYSTEM_RUN: Final = "/run/nyx"


def default_sockets() -> list[Path]:
    """Where a daemon's socket is looked for: NYX_SDK_SOCKET alone, or the user's node, the system's, the test network's."""
    if named := os.environ.get("NYX_SDK_SOCKET"):
        return [Path(named)]
    from nyx.config import run_home, state_home

    mine = os.environ.get("NYX_NODE_RUN_DIR") or run_home(os.environ)
    return [Path(folder, "sdk.sock") for folder in (mine, SYSTEM_RUN, f"{state_home(os.environ)}/testnet/alice/run")]


class Client:
    """A client of one daemon. Use it as an asynchronous context manager, or `start` and `close` it."""

    def __init__(self, socket: str | Path | None = None, *, streams: int = SLOTS_DEFAULT, ring: int = RING_DEFAULT) -> None:
        """Socket: the daemon's run_dir/sdk.sock; found by itself where it is in a usual place.

        `streams` is how many may be open at a time (1 to 256), `ring` the bytes kept of each, each way (a power of two).
        """
        self._paths = [Path(socket)] if socket else default_sockets()
        self._hello = Hello(streams, ring)
        self._events = Events()
        self._changed = Signal()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._boot = ""
        self._was_ready = False
        self._last_error: Exception | None = None

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Connect. Raises UnreachableError when no daemon answers now."""
        self._take(await self._connect())

    async def close(self) -> None:
        """Disconnect: streams that are closed are still sent to their end, the others are given up."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_TIME):
                    await asyncio.gather(*(s.flushed() for s in connection.streams if s.is_closing()))
            connection.close("the client was closed")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _connect(self) -> Connection:
        """Connect to the first socket that answers."""
        problems: list[str] = []
        for path in self._paths:
            try:
                return await Connection.made(path, self._hello)
            except UnreachableError as error:
                problems.append(str(error))
        raise UnreachableError("; ".join(problems))

    def _take(self, connection: Connection) -> None:
        """Use this connection; tell what is new about it."""
        self._connection = connection
        boot, self._boot = self._boot, connection.welcome.boot
        connection.on_lost, connection.on_note, connection.on_life = self._on_lost, self._on_note, self._on_life
        if boot:
            self._events.tell(Event(Kind.RECONNECTED if boot == self._boot else Kind.DAEMON_RESTARTED, connection.ready))
        self._on_note()
        self._changed.fire()

    def _on_lost(self) -> None:
        self._connection = None
        self._was_ready = False
        self._events.tell(Event(Kind.DAEMON_LOST))
        self._changed.fire()
        self._task = asyncio.get_running_loop().create_task(self._reconnect())

    def _on_note(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._events.tell(Event(Kind.CIRCUITS, connection.ready))
        if connection.ready and not self._was_ready:
            self._events.tell(Event(Kind.READY, connection.ready))
        self._was_ready = connection.ready > 0
        self._changed.fire()

    def _on_life(self) -> None:
        self._events.tell(Event(Kind.WORKER_RESTARTED, self._connection.ready if self._connection else 0))

    async def _reconnect(self) -> None:
        """Try until it works: pauses double up to a bound, and differ, so that many clients do not come at once."""
        pause = BACK_OFF_FIRST
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # not a secret
            try:
                self._take(await self._connect())
            except UnreachableError as error:
                self._last_error = error
                pause = min(2 * pause, BACK_OFF_MOST)
            else:
                return

    # ---------------------------------------------------------------- what the daemon can do now

    @property
    def connected(self) -> bool:
        """Whether the daemon answers."""
        return self._connection is not None

    @property
    def circuits(self) -> int:
        """How many circuits are ready."""
        return self._connection.ready if self._connection else 0

    async def ready(self, timeout: float | None = OPEN_TIME) -> None:  # noqa: ASYNC109  # the SDK's own errors
        """Wait until a circuit is ready. Raises NotReadyError after `timeout` seconds."""
        deadline = _deadline(timeout)
        while not self.circuits:
            try:
                await self._changed.wait(_left(deadline), "no circuit became ready")
            except TimedOutError as error:
                why = "no circuit became ready in time" if self.connected else f"no daemon: {self._last_error or 'it has gone'}"
                raise NotReadyError(why) from error

    # ---------------------------------------------------------------- streams

    async def open_stream(
        self,
        host: str,
        port: int,
        *,
        isolation: str | bytes | None = None,
        timeout: float | None = OPEN_TIME,  # noqa: ASYNC109  # the SDK's own errors
    ) -> Stream:
        """Open a stream to a host (a name, resolved at the exit, or an address) and a port.

        Streams of different `isolation` never share a circuit. While the daemon is away, or all streams are in use, this waits.
        Raises RefusedError, NotReadyError, UnreachableError, TimedOutError; ValueError for what cannot be a target. Cancelling
        it gives the stream up.
        """
        key, deadline = isolation_key(isolation), _deadline(timeout)
        while True:
            connection = await self._free_connection(deadline)
            stream = connection.open(host, port, key)
            try:
                outcome = await stream.opened(_left(deadline))
            except StreamLostError:
                continue  # nothing of the application was sent: the next daemon may try
            except BaseException:
                stream.abort()
                raise
            if outcome is Outcome.OK:
                stream.on_over(lambda ended: self._events.tell(Event(Kind.STREAM_CLOSED, self.circuits, ended.target)))
                return stream
            stream.close()
            if outcome is Outcome.SHUTDOWN:
                await asyncio.sleep(BACK_OFF_FIRST)  # the connection is about to end
                continue
            if outcome in {Outcome.NO_CIRCUIT, Outcome.BUSY}:
                raise NotReadyError(f"{host}:{port}: {outcome.text}")
            raise RefusedError(f"{host}:{port}", outcome)

    async def _free_connection(self, deadline: float | None) -> Connection:
        """Wait for the connection, and for a free slot in it."""
        while True:
            connection = self._connection
            try:
                if connection is None:
                    if self._task is None:
                        raise UnreachableError("the client is not started, or closed")
                    await self._changed.wait(_left(deadline), "no daemon")
                elif connection.slots_free:
                    return connection
                else:
                    await connection.changed.wait(_left(deadline), "no free stream")
            except TimedOutError as error:
                if connection is None:
                    raise UnreachableError(str(self._last_error or "the daemon has gone")) from error
                raise NotReadyError(f"all {connection.welcome.slots} streams of this client are in use") from error

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        isolation: str | bytes | None = None,
        timeout: float | None = OPEN_TIME,  # noqa: ASYNC109  # the SDK's own errors
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As asyncio.open_connection: a stream as asyncio's own reader and writer. Raises as `open_stream`."""
        return open_streams(await self.open_stream(host, port, isolation=isolation, timeout=timeout))

    # ---------------------------------------------------------------- events

    def events(self) -> AsyncGenerator[Event, None]:
        """Everything that happens from the first step of the iteration on."""
        return self._events.iterate()

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call this with everything that happens; gives what stops it."""
        return self._events.add(callback)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - asyncio.get_running_loop().time()
