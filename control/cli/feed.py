"""nyxctl feed: read the monitoring feed, and who else may read it by TCP."""

import os
from pathlib import Path
from typing import Any

import click

from control.cli.node import find_socket
from control.cli.output import echo, print_json, table
from control.cli.state import EXIT_UNREACHABLE, Failure, State, json_option
from control.places import SYSTEM_CONFIG, config_file
from control.schemas import FeedReaders

_SILENCE = 10_000  # ms without a message until it is said that none comes; twice the interval at least is waited


@click.group()
def command() -> None:
    """Read the monitoring feed (settings under monitor), and say who may read it by TCP."""


@command.command()
@click.option("--topic", "topics", multiple=True, help="Only topics that begin so, like nyx.events.")
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@json_option
@click.pass_obj
def follow(state: State, *, topics: tuple[str, ...], count: int | None) -> None:
    """Print the feed of a node of this user, a JSON object a line."""
    import zmq

    path = find_socket(state).parent / "feed.sock"
    if not path.exists():
        raise Failure(EXIT_UNREACHABLE, "unreachable", f"{path}: no node publishes here; it needs monitor.feed = true")
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        for topic in topics or ("",):
            socket.subscribe(topic)
        socket.connect(f"ipc://{path}")
        while count is None or count > 0:
            if not socket.poll(int((state.timeout or 0) * 1000) or _SILENCE) and (state.timeout or count is not None):
                raise Failure(EXIT_UNREACHABLE, "unreachable", f"{path}: nothing came; is nyxd running?")
            while socket.poll(0):
                click.echo(socket.recv_multipart()[-1].decode())
                count = None if count is None else count - 1
                if count == 0:
                    break


@command.command()
@json_option
@click.pass_obj
def readers(state: State) -> None:
    """Show the node's public key, which a reader by TCP must know, and whom it admits."""
    from control.feed import keys

    state_dir = _state_dir(state)
    public, _ = keys.load_or_make(state_dir)
    admitted = {name: keys.text(key) for key, name in keys.readers(state_dir).items()}
    found = FeedReaders(public.decode(), str(keys.readers_folder(state_dir)), admitted)
    if state.json:
        print_json(found)
        return
    echo(
        [
            f"key      {found.key}",
            f"readers  {found.folder}",
            *(table(["name", "key"], list(map(list, admitted.items()))) if admitted else []),
        ]
    )


@command.command(context_settings={"allow_interspersed_args": False})  # a key may begin with a dash
@click.argument("name")
@click.argument("key")
@json_option
@click.pass_obj
def admit(state: State, *, name: str, key: str) -> None:
    """Let the owner of a CURVE key read by TCP, from now on. To end that, remove the file that is named."""
    from control.feed import keys

    state_dir = _state_dir(state)
    path = keys.admit(state_dir, name, key)
    if state.json:
        public, _ = keys.load_or_make(state_dir)
        print_json(FeedReaders(public.decode(), str(path.parent), {n: keys.text(k) for k, n in keys.readers(state_dir).items()}))
    else:
        click.echo(f"{path}: may read the feed")


def _state_dir(state: State) -> Path:
    """State folder of the node whose configuration is meant."""
    from nyx.config import load

    mine: Any = config_file(os.environ)
    file = Path(state.config) if state.config else mine if mine.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG
    return load(file, environ=os.environ).node.state_dir
