"""nyxctl events: what happened at the node, and what happens."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from control.cli.node import ask
from control.cli.output import style
from control.cli.state import EXIT_UNREACHABLE, Failure, State, json_option

_SHOWN: Final = 20  # events without --follow, unless more are asked for
_WAIT: Final = 20.0  # seconds of one question while there is nothing new
_PATIENCE: Final = 10.0  # seconds beyond that for an answer, and for a control process that is started anew
_RETRY: Final = 0.2
_WARNING_KINDS: Final = ("not_ready", "warning_set", "worker_restarted", "control_restarted")


@click.command()
@click.option("--follow", is_flag=True, help="Show the last event and what comes, until Ctrl-C.")
@click.option("--count", type=click.IntRange(1), help="Like --follow, and end after so many events.")
@click.option("--last", type=click.IntRange(1, 1024), default=_SHOWN, show_default=True, help="Without --follow: how many.")
@click.option("--kind", "kinds", multiple=True, help="Only events of this kind, like warning_set; may be given again.")
@json_option
@click.pass_obj
def command(state: State, *, follow: bool, count: int | None, last: int, kinds: tuple[str, ...]) -> None:
    """Show what happened at the node: readiness, restarts, links, warnings; --json: a document a line.

    The node keeps the last 1024 events of the life of its control process. --timeout ends --follow and --count.
    """
    if not follow and count is None:
        events = [event for event in _kept(state) if not kinds or event["kind"] in kinds]
        for event in events[-last:]:
            _show(state, event)
        return
    shown = 0
    for event in _coming(state):
        if kinds and event["kind"] not in kinds:
            continue
        _show(state, event)
        shown += 1
        if shown == count:
            return


def _show(state: State, event: dict[str, Any]) -> None:
    if state.json:
        click.echo(json.dumps({"schema": "nyx.events", "version": 1} | event, ensure_ascii=False))
    else:
        click.echo(line(event))


def line(event: dict[str, Any]) -> str:
    """One event for people."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    kind = style(event["kind"], fg="yellow" if event["kind"] in _WARNING_KINDS else None, bold=True)
    parts = [f"worker {event['worker']}" if event["worker"] is not None else "", str(event["count"] or ""), event["text"] or ""]
    return "  ".join([when, kind, *(part for part in parts if part)])


def _kept(state: State) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = ask(state, "events")["events"]
    return events


def _coming(state: State) -> Iterator[dict[str, Any]]:
    """The newest event and those that come, over new lives of the control process. Raises Failure."""
    end = time.monotonic() + state.timeout if state.timeout else None
    log = ask(state, "events")
    life, place = log["life"], log["last"]
    yield from log["events"][-1:]
    while end is None or time.monotonic() < end:
        wait = _WAIT if end is None else max(0.0, min(_WAIT, end - time.monotonic()))
        log = _asked(state, {"after": place, "life": life, "wait": wait})
        life, place = log["life"], log["last"]
        yield from log["events"]


def _asked(state: State, args: dict[str, Any]) -> dict[str, Any]:
    """An answer, also of a control process that has to be started anew first. Raises Failure."""
    patient = State(state.socket, state.config, state.node, args["wait"] + _PATIENCE)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask(patient, "events", args)
        except Failure as error:
            if error.exit_code != EXIT_UNREACHABLE or time.monotonic() > until:
                raise
        time.sleep(_RETRY)
