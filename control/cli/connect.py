"""nyxctl connect: one stream on stdin and stdout, or local ports that lead to targets."""

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass

import click

from control.cli.state import EXIT_FAILURE, Failure, State, json_option

_HOST = r"\[[0-9A-Fa-f:.]+\]|[^:\[\]]+"
_FORWARD = re.compile(rf"(?:(?P<addr>{_HOST}):)?(?P<port>\d+):(?P<host>{_HOST}):(?P<to>\d+)")
_STREAMS = 64  # of the SDK at one time; further connections to a forwarded port wait for a free one


Serve = Callable[["Forward", asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Forward:
    """A local address and where connections to it lead."""

    address: str
    port: int
    host: str
    to: int


@dataclass
class Counts:
    """Bytes carried so far."""

    sent: int = 0
    received: int = 0


def _forwards(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[Forward]:
    found = []
    for value in values:
        match = _FORWARD.fullmatch(value)
        if not match or int(match["port"]) > 65535 or not 0 < int(match["to"]) < 65536:
            raise click.BadParameter(f"{value!r} is not [ADDR:]PORT:HOST:PORT, like 8080:example.org:80 or 127.0.0.1:0:[::1]:22")
        address = (match["addr"] or "127.0.0.1").strip("[]")
        found.append(Forward(address, int(match["port"]), match["host"].strip("[]"), int(match["to"])))
    return found


@click.command()
@click.argument("host", required=False)
@click.argument("port", type=click.IntRange(1, 65535), required=False)
@click.option("-L", "forwards", multiple=True, callback=_forwards, metavar="[ADDR:]PORT:HOST:PORT", help="Forward a local port.")
@click.option(
    "--via", type=click.Choice(["auto", "sdk", "proxy"]), default="auto", show_default=True, help="How to reach the node."
)
@json_option
@click.pass_obj
def command(state: State, *, host: str | None, port: int | None, forwards: list[Forward], via: str) -> None:
    """Open a stream to HOST PORT and carry stdin and stdout over it, or forward local ports until Ctrl-C.

    The name is looked up at the exit. The end of stdin is passed on, and what the target still says comes. Ends with 0 when the
    target ended the stream, with 1 when it was refused or broke, 4 when the node has no circuit, 6 when nothing came in time.
    As stdout carries the target's bytes, --json prints to stderr here; with -L it prints to stdout what is forwarded.
    """
    if bool(forwards) == (host is not None) or (host is not None and port is None):
        raise click.UsageError("say HOST PORT, or -L [ADDR:]PORT:HOST:PORT at least once")
    if forwards:
        asyncio.run(_forward(state, forwards, via))
        return
    assert host is not None
    assert port is not None
    try:
        asyncio.run(_connect(state, host, port, via))
    except Failure as error:
        if not state.json:
            raise
        from control.schemas import Error

        _say(Error(error.code, str(error)).to_json())
        state.exit_code = error.exit_code


def _say(document: dict[str, object]) -> None:
    import json

    click.echo(json.dumps(document, ensure_ascii=False), err=True)


# ---------------------------------------------------------------- one stream


async def _connect(state: State, host: str, port: int, via: str) -> None:
    from control.cli.carrier import Carrier
    from control.schemas import Connected
    from nyx.sdk import SdkError

    began = time.monotonic()
    counts = Counts()
    async with Carrier(state, via) as carrier:
        reader, writer = await carrier.open(host, port)
        opened = time.monotonic()
        try:
            await _both(reader, writer, counts)
        except (SdkError, OSError) as error:
            writer.transport.abort()
            raise Failure(EXIT_FAILURE, "reset", f"the stream to {host}:{port} broke: {error}") from error
        writer.close()
    if state.json:
        _say(Connected(carrier.way, opened - began, time.monotonic() - opened, counts.sent, counts.received).to_json())


async def _both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: Counts) -> None:
    """Carry both ways. Where a person types, the target's end is the end: nobody would type on."""
    sending = asyncio.create_task(_send(writer, counts))
    receiving = asyncio.create_task(_receive(reader, counts))
    try:
        if not os.isatty(0):
            await asyncio.gather(sending, receiving)
            return
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
        await receiving
    finally:
        sending.cancel()
        receiving.cancel()


async def _send(writer: asyncio.StreamWriter, counts: Counts) -> None:
    """Everything from stdin, then its end. A thread reads: stdin may be a file, which no event loop can wait for."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(4)

    def read() -> None:
        try:
            while True:
                data = os.read(0, 1 << 16)
                asyncio.run_coroutine_threadsafe(queue.put(data), loop).result()
                if not data:
                    return
        except OSError:
            loop.call_soon_threadsafe(queue.put_nowait, b"")
        except (RuntimeError, asyncio.CancelledError):
            return  # the stream is over

    threading.Thread(target=read, daemon=True).start()
    while data := await queue.get():
        writer.write(data)
        await writer.drain()
        counts.sent += len(data)
    writer.write_eof()


async def _receive(reader: asyncio.StreamReader, counts: Counts) -> None:
    """Everything to stdout, and its end: who reads it hears that the target has finished."""
    while data := await reader.read(1 << 16):
        await asyncio.to_thread(_write, data)
        counts.received += len(data)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


# ---------------------------------------------------------------- forwarded ports


async def _forward(state: State, forwards: list[Forward], via: str) -> None:
    """Serve until interrupted."""
    from control.cli.carrier import Carrier, join, reset
    from control.schemas import Forwarded, Forwards

    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(Carrier(state, via, _STREAMS))

        async def serve(forward: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far = await carrier.open(forward.host, forward.to)
            except Failure as error:
                click.echo(str(error), err=True)
                reset(writer)
                return
            await join((reader, writer), far)

        rows = []
        for forward in forwards:
            port = await _listen(stack, forward, serve)
            rows.append(Forwarded(forward.address, port, f"{forward.host}:{forward.to}"))
        found = Forwards(carrier.way, rows)
        if state.json:
            from control.cli.output import print_json

            print_json(found)
            sys.stdout.flush()
        else:
            for row in rows:
                click.echo(f"{row.address} port {row.port} leads to {row.target}, until Ctrl-C", err=True)
        await asyncio.Event().wait()


async def _listen(stack: AsyncExitStack, forward: Forward, serve: Serve) -> int:
    """Serve a local port, closed with the stack; its number. Raises Failure."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(forward, reader, writer))
        tasks.add(task)  # the loop itself holds it weakly
        task.add_done_callback(tasks.discard)

    try:
        server = await asyncio.start_server(accept, forward.address, forward.port)
    except OSError as error:
        text = f"{forward.address} port {forward.port}: {error.strerror or error}"
        raise Failure(EXIT_FAILURE, "failure", text) from error
    stack.callback(server.close)
    return int(server.sockets[0].getsockname()[1])
