"""nyxctl keys: make a node's keys, show its node id, keep a backup of them under a passphrase, restore it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from control.cli.output import print_json
from control.cli.passphrase import read_passphrase
from control.cli.state import EXIT_FAILURE, Failure, State, json_option
from control.schemas import Keys
from nyx.errors import ConfigError

if TYPE_CHECKING:
    from nyx.crypto.keys import StaticKeys

_NEW_HINT: Final = "a node that loses its keys loses its name, so move it away yourself"
_RESTORE_HINT: Final = "--force replaces it, and its keys are lost unless they are backed up too"
_PASSPHRASE: Final = click.option(
    "--passphrase-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Read the passphrase from the first line of this open file descriptor instead of the terminal.",
)


@click.group()
def command() -> None:
    """Make a node's keys, show its node id, back them up and restore them."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def new(state: State, file: Path) -> None:
    """Make new keys in FILE, readable by you alone. A file that exists is never replaced."""
    from nyx.crypto.keys import StaticKeys

    keys = StaticKeys.generate(os.urandom)
    _save(file, keys, force=False)
    _print(state, file, keys.public.node_id)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def show(state: State, file: Path) -> None:
    """Show the node id of the keys in FILE; nothing secret is printed."""
    from nyx.crypto.keyfile import load_keys

    _print(state, file, load_keys(file).public.node_id)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("backup_file", metavar="BACKUP", type=click.Path(path_type=Path))
@_PASSPHRASE
@json_option
@click.pass_obj
def backup(state: State, file: Path, backup_file: Path, passphrase_fd: int | None) -> None:
    """Seal the keys in FILE under a passphrase into the new file BACKUP, which may be kept anywhere."""
    from nyx.crypto.backup import seal_backup
    from nyx.crypto.keyfile import load_keys
    from nyx.files import write_new

    keys = load_keys(file)
    if os.path.lexists(backup_file):
        raise _exists(backup_file, "a backup is never replaced")
    data = seal_backup(keys, read_passphrase(passphrase_fd, twice=True), os.urandom)
    with _writing(backup_file, "a backup is never replaced"):
        write_new(backup_file, data)
    _print(state, backup_file, keys.public.node_id)


@command.command()
@click.argument("backup_file", metavar="BACKUP", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the keys in FILE, which are lost unless they are backed up too.")
@_PASSPHRASE
@json_option
@click.pass_obj
def restore(state: State, backup_file: Path, file: Path, force: bool, passphrase_fd: int | None) -> None:
    """Write the keys in BACKUP to FILE, readable by you alone. A node takes them at its next start."""
    from nyx.crypto.backup import BACKUP_SIZE, open_backup
    from nyx.files import read_bounded

    try:
        data = read_bounded(backup_file, BACKUP_SIZE)
    except FileNotFoundError:
        raise Failure(EXIT_FAILURE, "missing", f"{backup_file}: there is no such file") from None
    if not force and os.path.lexists(file):
        raise _exists(file, _RESTORE_HINT)
    passphrase = read_passphrase(passphrase_fd, twice=False)
    try:
        keys = open_backup(data, passphrase)
    except ConfigError as error:
        raise ConfigError([f"{backup_file}: {problem}" for problem in error.problems]) from error
    _save(file, keys, force=force, hint=_RESTORE_HINT)
    _print(state, file, keys.public.node_id)


def _save(file: Path, keys: "StaticKeys", *, force: bool, hint: str = _NEW_HINT) -> None:
    from nyx.crypto.keyfile import save_keys
    from nyx.files import private_folder

    private_folder(file.absolute().parent)
    with _writing(file, hint):
        save_keys(file, keys, replace=force)


@contextmanager
def _writing(file: Path, hint: str) -> Iterator[None]:
    """What goes wrong inside is said with the file's name."""
    try:
        yield
    except FileExistsError:
        raise _exists(file, hint) from None
    except OSError as error:
        raise Failure(EXIT_FAILURE, "write", f"{file}: cannot be written: {error.strerror}") from None


def _exists(file: Path, hint: str) -> Failure:
    return Failure(EXIT_FAILURE, "exists", f"{file} exists; {hint}")


def _print(state: State, file: Path, node_id: bytes) -> None:
    if state.json:
        print_json(Keys(str(file), node_id.hex()))
    else:
        click.echo(f"{file}  node {node_id.hex()}")
