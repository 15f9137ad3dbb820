"""nyxctl reload: read the configuration files anew, all or nothing, while the node works on."""

from collections.abc import Mapping
from typing import Any, Final

import click

from control.cli.node import ask
from control.cli.output import echo, plural, print_json, style
from control.cli.state import State, json_option

RELOAD_TIME: Final = 55.0  # seconds: a worker that is starting again is waited for


@click.command()
@json_option
@click.pass_obj
def command(state: State) -> None:
    """Read the configuration and the directory anew, and take over what needs no restart.

    Everything is checked first: where anything is wrong nothing is changed, and the exit code is 78.
    """
    document = ask(state, "reload", {"origin": "reload"}, RELOAD_TIME)
    if state.json:
        print_json(document)
    else:
        echo(lines(document))


def lines(document: Mapping[str, Any]) -> list[str]:
    """What a reload did, for people."""
    version, waiting = document["config"], document["waiting"]
    if document["changed"]:
        head = f"version {version} runs (was {document['previous']}): {plural(len(document['applied']), 'change')} applied"
    else:
        head = f"nothing to change; version {version} runs"
    if waiting:
        head += f", {len(waiting)} {'needs' if len(waiting) == 1 else 'need'} a restart of the node"
    return [head, *change_lines([*document["applied"], *waiting])]


def change_lines(changes: list[Mapping[str, Any]]) -> list[str]:
    """One line for each change: key, old and new value, from when it holds."""
    from nyx.changes import Change

    texts = [Change(c["key"], c["old"], c["new"], c["live"]).text() for c in changes]
    keys = max((len(c["key"]) for c in changes), default=0)
    widths = min(max(map(len, texts), default=0), 40)
    return [
        f"  {change['key']:{keys}}  {text:{widths}}  " + style(change["effect"], fg="green" if change["live"] else "yellow")
        for change, text in zip(changes, texts, strict=True)
    ]
