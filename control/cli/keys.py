"""nyxctl keys: make a node's keys, or show its node id."""

import os
from pathlib import Path

import click

from control.cli.output import print_json
from control.cli.state import EXIT_FAILURE, Failure, State, json_option
from control.schemas import Keys


@click.group()
def command() -> None:
    """Make a node's keys, or show its node id."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def new(state: State, file: Path) -> None:
    """Make new keys in FILE, readable by you alone. A file that exists is never replaced."""
    from nyx.crypto.keyfile import save_keys
    from nyx.crypto.keys import StaticKeys
    from nyx.files import private_folder

    if file.exists():
        raise Failure(
            EXIT_FAILURE, "exists", f"{file} exists; a node that loses its keys loses its name, so move it away yourself"
        )
    private_folder(file.absolute().parent)
    keys = StaticKeys.generate(os.urandom)
    save_keys(file, keys)
    _print(state, file, keys.public.node_id)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def show(state: State, file: Path) -> None:
    """Show the node id of the keys in FILE; nothing secret is printed."""
    from nyx.crypto.keyfile import load_keys

    _print(state, file, load_keys(file).public.node_id)


def _print(state: State, file: Path, node_id: bytes) -> None:
    if state.json:
        print_json(Keys(str(file), node_id.hex()))
    else:
        click.echo(f"{file}  node {node_id.hex()}")
