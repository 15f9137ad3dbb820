"""nyxctl circuits: the circuits through this node."""

from typing import Any

import click

from control.cli.node import ask
from control.cli.output import duration, echo, print_json, table
from control.cli.state import State, json_option


@click.command()
@click.option("--close", "close", nargs=2, type=int, metavar="WORKER CIRCUIT", help="Close one circuit.")
@json_option
@click.pass_obj
def command(state: State, *, close: tuple[int, int] | None) -> None:
    """Show the circuits through this node; hops are known for its own circuits only."""
    if close:
        document = ask(state, "close_circuit", {"worker": close[0], "circuit": close[1]})
        if state.json:
            print_json(document)
        else:
            echo([f"circuit {close[1]} of worker {close[0]} is closed"])
        return
    document = ask(state, "circuits")
    if state.json:
        print_json(document)
        return
    heads = ["worker", "id", "role", "state", "age", "streams", "in", "out", "hops"]
    echo(table(heads, [_cells(row) for row in document["circuits"]]))
    for worker in document["unreachable"]:
        click.echo(f"worker {worker} did not answer", err=True)


def _cells(row: dict[str, Any]) -> list[str]:
    hops = " -> ".join(hop["alias"] or hop["node"][:12] for hop in row["hops"] or ()) or "unknown here"
    streams = "-" if row["streams"] is None else str(row["streams"])
    age = duration(row["age"])
    return [
        str(row["worker"]),
        str(row["id"]),
        row["role"],
        row["state"],
        age,
        streams,
        str(row["cells_in"]),
        str(row["cells_out"]),
        hops,
    ]
