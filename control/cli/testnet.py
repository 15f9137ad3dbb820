"""nyxctl testnet: a whole network on this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from control.cli.output import duration, echo, print_json, style, table
from control.cli.state import EXIT_FAILURE, EXIT_NOT_READY, EXIT_USAGE, Failure, State, json_option
from control.places import program, testnet_dir
from control.schemas import Demo, Testnet
from nyx.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def _folder(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path:
    return value.absolute() if value else testnet_dir(os.environ)


def _dir_option(function: F) -> F:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path),
        callback=_folder,
        help="Folder of the network; several may run side by side.",
    )(function)


def _plan_options(function: F) -> F:
    for name, default, text in reversed(
        (
            ("--relays", 4, "Relays; at least as many as hops."),
            ("--clients", 1, "Clients, each with a proxy, 1 to 8."),
            ("--hops", 3, "Relays on a circuit, 1 to 7."),
            ("--workers", 1, "Worker processes of each node, 1 to 4."),
            ("--base-port", 43300, "UDP port of the first node, 43300 to 43399."),
            ("--proxy-port", 9750, "TCP port of the first client's proxy."),
        )
    ):
        function = click.option(name, type=int, default=default, show_default=True, help=text)(function)
    setting = "A setting of every node, over its file; may be given again."
    function = click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help=setting)(function)
    text = "TCP port of the first node's metrics, the others' follow; without it there are none."
    return _dir_option(click.option("--metrics-port", type=int, help=text)(function))


@click.group()
def command() -> None:
    """Run a whole network on this machine: real nodes on 127.0.0.1, nothing leaves it."""


@command.command()
@_plan_options
@json_option
@click.pass_obj
def up(state: State, /, **options: Any) -> None:
    """Start a network and wait until it is ready."""
    found = _up(state, options)
    if state.json:
        print_json(found)
    else:
        echo(lines(found))


@command.command()
@_plan_options
@json_option
@click.pass_obj
def demo(state: State, /, **options: Any) -> None:
    """Start a network, fetch one page through it, and leave it running."""
    from control.testnet import demo as module
    from control.testnet.network import TestnetError, status

    folder = options["folder"]
    network = status(folder)
    if network.state != "up":
        _up(state, options)
    elif not state.json:
        click.echo(f"the test network in {folder} runs already and stays as it is", err=True)
    try:
        found = module.fetch(folder)
    except TestnetError as error:
        raise Failure(EXIT_FAILURE, "failure", str(error)) from error
    if state.json:
        print_json(found)
        return
    option = "" if folder == testnet_dir(os.environ) else f" --dir {folder}"
    heads = ["next: ", *["      "] * 9]
    steps = module.next_commands(found, program(), option)
    echo([_demo_line(found), *(f"{head}{step}" for head, step in zip(heads, steps, strict=False))])


@command.command()
@_dir_option
@json_option
@click.option("--check", is_flag=True, help="Exit with 4 unless the network is up.")
@click.pass_obj
def status(state: State, folder: Path, *, check: bool) -> None:
    """Show the nodes of a network."""
    from control.testnet.network import status as look

    found = look(folder)
    if state.json:
        print_json(found)
    else:
        echo(lines(found))
    state.exit_code = EXIT_NOT_READY if check and found.state != "up" else 0


@command.command()
@_dir_option
@json_option
@click.pass_obj
def down(state: State, folder: Path) -> None:
    """Stop a network and remove everything it left."""
    from control.testnet.network import TestnetError
    from control.testnet.network import down as stop
    from control.testnet.network import status as look

    try:
        done = stop(folder)
    except TestnetError as error:
        raise Failure(EXIT_FAILURE, "failure", str(error)) from error
    if state.json:
        print_json(look(folder))
    else:
        click.echo(f"the test network in {folder} is stopped and removed" if done else f"there is no test network in {folder}")


def _up(state: State, options: dict[str, Any]) -> Testnet:
    from control.testnet.network import READY_TIMEOUT, TestnetError
    from control.testnet.network import up as start
    from control.testnet.plan import Plan

    try:
        plan = Plan(**options)
    except ConfigError as error:
        raise Failure(EXIT_USAGE, "usage", "\n".join(error.problems)) from error
    try:
        return start(plan, lambda text: click.echo(text, err=True), state.timeout or READY_TIMEOUT)
    except TestnetError as error:
        raise Failure(EXIT_FAILURE, "failure", str(error)) from error


def lines(network: Testnet) -> list[str]:
    """The network for people."""
    colour = {"up": "green", "down": None}.get(network.state, "yellow")
    found = [f"testnet  {style(network.state, fg=colour, bold=True)}  {network.dir}"]
    if not network.nodes:
        return found
    found.append(f"proxy    {network.proxy}  SOCKS5 + HTTP CONNECT    {network.hops} hops")
    if network.web:
        found.append(f"web      {network.web}")
    rows = [[n.alias, n.role, str(n.pid or "-"), f"{n.port}", n.state, n.socket] for n in network.nodes]
    return [*found, *table(["node", "role", "pid", "port", "state", "socket"], rows)]


def _demo_line(demo: Demo) -> str:
    way = " -> ".join(["alice", *(hop.alias or hop.node[:8] for hop in demo.hops), "web server"])
    facts = [f'"{demo.text}"', f"{len(demo.hops)} hops", duration(demo.seconds), "X25519+ML-KEM-768"]
    return "   ".join([style(way, bold=True), *facts])
