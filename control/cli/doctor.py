"""nyxctl doctor: checks of the node and its machine, with a fix for each thing that is found."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from control.cli.node import ask
from control.cli.output import echo, plural, print_json, style
from control.cli.state import EXIT_FAILURE, Failure, State, json_option
from control.schemas import Check, Doctor

_COLOUR = {"ok": "green", "warn": "yellow", "fail": "red"}
_BUFFER = 4096 << 10  # bytes: the default of node.receive_buffer


@click.command()
@json_option
@click.pass_obj
def command(state: State) -> None:
    """Check the node and its machine: table of what is right, what is not, and what to do.

    Ends with 0 when nothing fails, warnings or not, and with 1 otherwise. It changes nothing. One name that does not exist is
    sent through the proxy, to see that the exit looks it up.
    """
    status, checks = _status(state)
    checks += _checks(state, status)
    counts = {kind: sum(check.state == kind for check in checks) for kind in _COLOUR}
    found = Doctor(status["alias"] if status else None, counts["warn"], counts["fail"], checks)
    if state.json:
        print_json(found)
    else:
        echo(lines(found))
    state.exit_code = EXIT_FAILURE if found.failures else 0


def _status(state: State) -> tuple[dict[str, Any] | None, list[Check]]:
    try:
        status = ask(state, "status")
    except Failure as error:
        fix = {"denied": "ask as the node's own user or as root", "timeout": "see the node's log"}.get(error.code, "start nyxd")
        return None, [Check("node", "fail", str(error).partition("\n")[0], fix)]
    return status, [Check("node", "ok", f"{status['alias']} answers, release {status['release']}")]


def _checks(state: State, status: dict[str, Any] | None) -> Iterator[Check]:
    from control.doctor import keys, machine, node, proxy
    from control.places import cache_dir

    running = _asked(state, "config") if status else None
    file = Path(running["file"]) if running else _file(state)
    config = None
    if status:
        yield node.ready(status)
        yield from node.told(status)
        yield from node.processes(status)
        if peers := _asked(state, "peers"):
            yield node.guard(status, peers)
    if file:
        check, config = node.valid(file, {} if running else os.environ)
        yield check
    if running:
        from nyx.config import from_settings

        config = from_settings({row["key"]: row["value"] for row in running["settings"]})
        if diff := _asked(state, "config_diff"):
            yield node.difference(diff)
    if config:
        yield node.directory(config)
        if own := keys.own_keys(config):
            yield own
    if status and status["proxy"]:
        yield proxy.greeting(status["proxy"])
        yield proxy.names(status["proxy"])
        yield proxy.variables(status["proxy"])
    worker = next((row["pid"] for row in status["processes"] if row["name"] == "worker 0"), None) if status else None
    yield machine.clock()
    yield machine.buffers(config.node.receive_buffer << 10 if config else _BUFFER)
    yield machine.offloads()
    yield from machine.sealing()
    yield from machine.limits(config, worker)
    cache = cache_dir(os.environ)
    if config:
        yield from machine.folders(config)
        yield machine.room("room for state", config.node.state_dir)
    yield machine.room("room for kernels", cache)
    yield machine.kernels(cache / "kernels")


def _asked(state: State, op: str) -> dict[str, Any] | None:
    """What the node answers, or None where this one does not."""
    try:
        return ask(state, op)
    except Failure:
        return None


def _file(state: State) -> Path | None:
    """The configuration that is meant, where there is one."""
    from control.places import SYSTEM_CONFIG, config_file

    if state.config:
        return Path(state.config)
    return next((file for file in (config_file(os.environ), SYSTEM_CONFIG) if file.exists()), None)


def lines(found: Doctor) -> list[str]:
    """The table for people: what to do stands below what was found."""
    width = max(len(check.name) for check in found.checks)
    rows = []
    for check in found.checks:
        mark = style(f"{check.state:4}", fg=_COLOUR[check.state], bold=check.state != "ok")
        rows.append(f"{mark}  {check.name:{width}}  {check.text}")
        if check.fix:
            rows.append(f"      {'':{width}}  -> {check.fix}")
    return [*rows, f"{plural(found.failures, 'failure')}, {plural(found.warnings, 'warning')}"]
