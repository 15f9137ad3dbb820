"""nyxctl version: what is installed."""

import platform

import click

from control.cli.output import print_json
from control.cli.state import State, json_option
from control.schemas import Version
from nyx import __version__

PROTOCOL = "Nyx0.1"


@click.command()
@json_option
@click.pass_obj
def command(state: State) -> None:
    """Show what is installed."""
    found = Version(__version__, PROTOCOL, platform.python_version())
    if state.json:
        print_json(found)
    else:
        click.echo(f"nyxctl {found.release}, protocol {found.protocol}, Python {found.python}")
