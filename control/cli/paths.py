"""nyxctl paths: where Nyx looks and keeps things."""

import os

import click

from control import places
from control.cli.node import find_socket
from control.cli.output import echo, print_json
from control.cli.state import State, json_option
from control.schemas import Paths
from nyx.config import run_home, state_home


@click.command()
@json_option
@click.pass_obj
def command(state: State) -> None:
    """Show where Nyx looks and keeps things, for you."""
    found = Paths(
        config=str(places.config_file(os.environ)),
        state=state_home(os.environ),
        run=run_home(os.environ),
        cache=str(places.cache_dir(os.environ)),
        socket=str(find_socket(state)),
        testnet=str(places.testnet_dir(os.environ)),
    )
    if state.json:
        print_json(found)
    else:
        echo([f"{name:8} {getattr(found, name)}" for name in ("config", "state", "run", "cache", "socket", "testnet")])
