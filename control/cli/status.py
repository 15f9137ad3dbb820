"""nyxctl status: how the node is."""

import time
from typing import Any

import click

from control.cli.node import ask
from control.cli.output import duration, echo, plural, print_json, style
from control.cli.state import EXIT_NOT_READY, EXIT_UNREACHABLE, Failure, State, json_option

WAIT = 60.0  # seconds that --wait waits unless --timeout says otherwise
_PAUSE = 0.1


@click.command()
@click.option("--check", is_flag=True, help="Exit with 4 when the node is not ready.")
@click.option("--wait", is_flag=True, help="Wait until the node is ready, 60 s unless --timeout says otherwise.")
@json_option
@click.pass_obj
def command(state: State, *, check: bool, wait: bool) -> None:
    """Show how the node is: state, proxy, health, processes."""
    document = _wait(state) if wait else ask(state, "status")
    if state.json:
        print_json(document)
    else:
        echo(lines(document))
    if (check or wait) and not document["ready"]:
        state.exit_code = EXIT_NOT_READY


def _wait(state: State) -> dict[str, Any]:
    """The status once the node is ready, or the last one before the time was over."""
    until = time.monotonic() + (state.timeout or WAIT)
    last: dict[str, Any] | None = None
    shown = ""
    while True:
        try:
            last = ask(state, "status")
        except Failure as error:
            if error.exit_code != EXIT_UNREACHABLE or time.monotonic() > until:
                raise
        if last and last["stage"] != shown and not state.json:
            shown = last["stage"]
            click.echo(f"bootstrapping  {last['progress']:3d}%  {shown}", err=True)
        if last and (last["ready"] or time.monotonic() > until):
            return last
        time.sleep(_PAUSE)


def config_lines(status: dict[str, Any]) -> list[str]:
    """The configuration's version, and what of the files waits for a restart."""
    if not status.get("config"):
        return []
    waiting = status.get("waiting", [])
    return [f"config   version {status['config']}" + (f"  {', '.join(waiting)}: needs a restart" if waiting else "")]


def memory_lines(status: dict[str, Any]) -> list[str]:
    """How much of the memory cap is used."""
    used, cap = status.get("memory_used"), status.get("memory_cap")
    if not used or not cap:
        return []
    return [f"memory   {used >> 20} of {cap >> 20} MiB"]


def lines(status: dict[str, Any]) -> list[str]:
    """The status for people."""
    ready = (
        style("READY", fg="green", bold=True)
        if status["ready"]
        else style(f"NOT READY: {status['stage']}", fg="yellow", bold=True)
    )
    circuits = f"{plural(status['circuits'], 'circuit')}"
    if status["role"] == "client":
        circuits += f" ({status['circuits_ready']} ready)"
    proxy = (
        f"{status['proxy']}  SOCKS5 + HTTP CONNECT    names are resolved at the exit: use socks5h://"
        if status["proxy"]
        else "off"
    )
    address = f"{status['address']}:{status['port']}/udp"
    found = [
        f"node     {status['alias']}  {status['role']}  {address}  up {duration(status['uptime'])}"
        + (f"  upgraded {status['upgrades']} x" if status["upgrades"] else ""),
        f"state    {ready}  {plural(status['links'], 'link')}, {circuits}, {plural(status['streams'], 'stream')}",
        f"proxy    {proxy}",
        *memory_lines(status),
        *config_lines(status),
        f"health   {plural(len(status['warnings']), 'warning') if status['warnings'] else 'no warnings'}",
    ]
    found += [f"         {style('!', fg='yellow')} {warning}" for warning in status["warnings"]]
    for i, process in enumerate(status["processes"]):
        restarts = f"  restarted {process['restarts']} x" if process["restarts"] else ""
        name = "process" if i == 0 else ""
        found.append(f"{name:8} {process['name']:11} {process['pid'] or '-':>7}  {process['state']}{restarts}")
    return found
