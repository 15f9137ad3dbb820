"""nyxctl streams: the streams that begin or end here."""

from typing import Any

import click

from control.cli.node import ask
from control.cli.output import duration, echo, print_json, size, table
from control.cli.state import State, json_option


@click.command()
@click.option("--show-targets", is_flag=True, help="Show where this node's own streams go.")
@click.option("--close", "close", nargs=3, type=int, metavar="WORKER CIRCUIT ID", help="Reset one stream.")
@json_option
@click.pass_obj
def command(state: State, *, show_targets: bool, close: tuple[int, int, int] | None) -> None:
    """Show the streams that begin or end here, and why the last ones ended. Targets are hidden unless asked for."""
    if close:
        worker, circuit, stream = close
        closed = ask(state, "close_stream", {"worker": worker, "circuit": circuit, "stream": stream})
        if state.json:
            print_json(closed)
        else:
            echo([f"stream {stream} on circuit {circuit} of worker {worker} is closed"])
        return
    document = ask(state, "streams", {"show_targets": show_targets})
    if state.json:
        print_json(document)
        return
    heads = ["worker", "id", "circuit", "role", "state", "age", "in", "out", *(["target"] if show_targets else []), "reason"]
    echo(table(heads, [_cells(row, show_targets=show_targets) for row in document["streams"]]))
    for worker in document["unreachable"]:
        click.echo(f"worker {worker} did not answer", err=True)


def _cells(row: dict[str, Any], *, show_targets: bool) -> list[str]:
    number, circuit = ("-" if row[name] is None else str(row[name]) for name in ("id", "circuit"))
    cells = [str(row["worker"]), number, circuit, row["role"], row["state"], duration(row["age"])]
    cells += ["-" if row[name] is None else size(row[name]) for name in ("bytes_in", "bytes_out")]
    if show_targets:
        cells.append(row["target"] or "")
    return [*cells, row["reason"] or ""]
