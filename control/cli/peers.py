"""nyxctl peers: the links to other nodes."""

from typing import Any

import click

from control.cli.node import ask
from control.cli.output import echo, print_json, table
from control.cli.state import State, json_option


@click.command()
@json_option
@click.pass_obj
def command(state: State) -> None:
    """Show the links to other nodes; clients have no identity."""
    document = ask(state, "peers")
    if state.json:
        print_json(document)
        return
    echo(
        table(
            ["worker", "node", "direction", "state", "sessions", "suite", "rtt", "in", "out"],
            [_cells(r) for r in document["peers"]],
        )
    )
    for worker in document["unreachable"]:
        click.echo(f"worker {worker} did not answer", err=True)


def _cells(row: dict[str, Any]) -> list[str]:
    name = row["alias"] or (row["node"] or "")[:12] or "a client"
    rtt = "-" if row["rtt"] is None else f"{row['rtt']:.1f} ms"
    direction = "to" if row["initiator"] else "from"
    figures = [str(row["packets_in"]), str(row["packets_out"])]
    return [str(row["worker"]), name, direction, row["state"], str(row["sessions"]), row["suite"] or "-", rtt, *figures]
