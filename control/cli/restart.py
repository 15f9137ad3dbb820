"""nyxctl restart: a process of the node, started anew."""

import click

from control.cli.node import ask
from control.cli.output import echo, print_json
from control.cli.state import State, json_option

WAIT = 25.0  # seconds: a worker that hangs is killed after a few


@click.group()
def command() -> None:
    """Start a process of the node anew. Streams go on: the next life finds memory and sockets as they are."""


@command.command()
@click.argument("number", type=click.IntRange(0))
@json_option
@click.pass_obj
def worker(state: State, *, number: int) -> None:
    """Start worker NUMBER anew, as `nyxctl status` counts them."""
    state.timeout = state.timeout or WAIT
    document = ask(state, "restart", {"worker": number})
    if state.json:
        print_json(document)
    else:
        echo([f"worker {number} runs again, process {document['pid']}"])
