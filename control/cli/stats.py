"""nyxctl stats: the counters."""

import click

from control.cli.node import ask
from control.cli.output import echo, print_json, table
from control.cli.state import State, json_option


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show counters that are zero too.")
@click.option("--workers", is_flag=True, help="A column for each worker.")
@json_option
@click.pass_obj
def command(state: State, *, show_all: bool, workers: bool) -> None:
    """Show counters since the node started. They name no peer, address, circuit or stream."""
    document = ask(state, "stats")
    if state.json:
        print_json(document)
        return
    names = [name for name, value in document["total"].items() if value or show_all]
    columns = [document["total"], *(w["counters"] for w in document["workers"] if workers)]
    heads = ["counter", "total", *(f"worker {w['worker']}" for w in document["workers"] if workers)]
    echo(table(heads, [[name, *(str(column[name]) for column in columns)] for name in names]))
