"""nyxctl upgrade: the running node takes over the code that is installed."""

import time
from typing import Any

import click

from control.cli.node import ask
from control.cli.output import echo, plural, print_json
from control.cli.state import EXIT_DENIED, EXIT_TIMEOUT, Failure, State, json_option

PREPARE = 330.0  # seconds: new kernels may be compiled first
FOLLOW = 60.0  # seconds for the new code to be ready, beside the time to drain
DRAIN = 60.0
_PAUSE = 0.05


@click.command()
@click.option(
    "--drain",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    default=DRAIN,
    show_default=True,
    help="If the new code cannot take over what runs: let streams end for so long, then start from nothing.",
)
@click.option("--no-drain", is_flag=True, help="In that case change nothing, and exit with 1.")
@json_option
@click.pass_obj
def command(state: State, *, drain: float, no_drain: bool) -> None:
    """Run the code that is installed now. No stream ends, unless the new version keeps its memory differently."""
    limit, state.timeout = state.timeout, state.timeout or PREPARE
    begun = ask(state, "upgrade", {"drain": None if no_drain else drain})
    if begun["drained"] and not state.json:
        for change in begun["changes"]:
            click.echo(f"what runs cannot be kept: {change}", err=True)
        click.echo(
            f"nothing new is taken; the node starts from nothing when all has ended, at the latest in {drain:.0f} s", err=True
        )
    began = time.monotonic()
    status = _follow(state, begun, began + (limit or FOLLOW + (drain if begun["drained"] else 0)))
    document = {
        "schema": "nyx.upgraded",
        "version": 1,
        "alias": begun["alias"],
        "before": begun["release"],
        "after": status["release"],
        "drained": begun["drained"],
        "seconds": round(time.monotonic() - began, 3),
        "streams": 0 if begun["drained"] else status["streams"],
    }
    if state.json:
        print_json(document)
        return
    kept = "started anew" if document["drained"] else f"{plural(document['streams'], 'stream')} went on"
    versions = f"version {document['after']} (was {document['before']})"
    echo([f"{document['alias']} runs {versions}, {kept}; {document['seconds']:.1f} s"])


def _follow(state: State, begun: dict[str, Any], until: float) -> dict[str, Any]:
    """The status of the node once the new code answers. Raises Failure."""
    state.timeout = 5.0
    while time.monotonic() < until:
        try:
            status = ask(state, "status")
        except Failure as error:
            if error.exit_code == EXIT_DENIED:
                raise
        else:
            if _is_new(begun, status):
                return status
        time.sleep(_PAUSE)
    raise Failure(EXIT_TIMEOUT, "timeout", "the new code does not answer yet; see: nyxctl status, and the node's log")


def _is_new(begun: dict[str, Any], status: dict[str, Any]) -> bool:
    """Whether the control process is another one, and everybody runs."""
    pids = {process["name"]: process["pid"] for process in status["processes"]}
    running = all(process["state"] == "running" for process in status["processes"])
    replaced = begun["drained"] or status["upgrades"] > begun["upgrades"]
    return bool(running and replaced and pids.get("control") != begun["control"])
