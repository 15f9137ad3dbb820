"""nyxctl events: what happens at the node, from its monitoring feed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from control.cli.node import find_socket
from control.cli.output import style
from control.cli.state import EXIT_UNREACHABLE, Failure, State, json_option

_TOPIC = "nyx.events/1"
_SETTLE = 1.0  # seconds in which the feed repeats the last event to who comes; without --follow no more are waited for
_WARNING_KINDS = ("not_ready", "warning_set", "worker_restarted", "control_restarted")


@click.command()
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C; without it the last event is shown.")
@click.option("--count", type=click.IntRange(1), help="End after so many events.")
@click.option("--kind", "kinds", multiple=True, help="Only events of this kind, like warning_set; may be given again.")
@json_option
@click.pass_obj
def command(state: State, *, follow: bool, count: int | None, kinds: tuple[str, ...]) -> None:
    """Show what happens at the node: readiness, restarts, links, warnings; --json: a document a line.

    The events come from the monitoring feed of a node with monitor.feed = true. The feed keeps the last event for who comes
    later. --timeout ends --follow and --count.
    """
    for shown, message in enumerate(_messages(state, follow=follow or count is not None, kinds=kinds), 1):
        data = message["data"]
        if state.json:
            click.echo(json.dumps(data | {"seq": message["seq"], "time": message["time"]}, ensure_ascii=False))
        else:
            click.echo(line(message))
        if shown == count:
            return


def line(message: dict[str, Any]) -> str:
    """One event for people."""
    data = message["data"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(message["time"]))
    kind = style(data["kind"], fg="yellow" if data["kind"] in _WARNING_KINDS else None, bold=True)
    parts = [f"worker {data['worker']}" if data["worker"] is not None else "", str(data["count"] or ""), data["text"] or ""]
    return "  ".join([when, kind, *(part for part in parts if part)])


def _messages(state: State, *, follow: bool, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The feed's events. Raises Failure."""
    import zmq

    path = _feed(state)
    end = time.monotonic() + state.timeout if state.timeout else None
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        socket.subscribe(_TOPIC)
        socket.connect(f"ipc://{path}")
        while True:
            left = None if end is None else max(0, int((end - time.monotonic()) * 1000))
            wait = left if follow else int(_SETTLE * 1000)
            if not socket.poll(wait):
                return
            message = json.loads(socket.recv_multipart()[-1])
            if not kinds or message["data"]["kind"] in kinds:
                yield message


def _feed(state: State) -> Path:
    path = find_socket(state).parent / "feed.sock"
    if not path.exists():
        raise Failure(EXIT_UNREACHABLE, "unreachable", f"{path}: no node publishes here; it needs monitor.feed = true")
    return path
