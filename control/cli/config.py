"""nyxctl config: check a configuration file, or show what is in force."""

import os
from pathlib import Path
from typing import Any

import click

from control.cli.output import echo, print_json, table
from control.cli.state import EXIT_CONFIG, State, json_option
from control.places import SYSTEM_CONFIG, config_file
from control.schemas import ConfigCheck, ConfigShow, Setting
from nyx.config import KEYS, Config, load
from nyx.errors import ConfigError


@click.group()
def command() -> None:
    """Check a configuration file, or show what is in force."""


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def check(state: State, file: Path | None) -> None:
    """Find everything that is wrong with a configuration. Exits with 78 when it cannot be used."""
    path = _file(state, file)
    try:
        load(path, environ=os.environ)
        problems = []
    except ConfigError as error:
        problems = error.problems
    if state.json:
        print_json(ConfigCheck(str(path), not problems, problems))
    elif problems:
        for problem in problems:
            click.echo(problem, err=True)
    else:
        click.echo(f"{path}: ok")
    state.exit_code = EXIT_CONFIG if problems else 0


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@json_option
@click.pass_obj
def show(state: State, file: Path | None, *, origin: bool) -> None:
    """Show every key with the value that a node started now would use."""
    path = _file(state, file)
    config = load(path, environ=os.environ)
    settings = [Setting(key.name, _value(config, key.name), config.origins[key.name], key.about) for key in KEYS]
    if state.json:
        print_json(ConfigShow(str(path), settings))
        return
    import json

    heads = ["key", "value", *(["origin"] if origin else []), "meaning"]
    echo(table(heads, [[s.key, json.dumps(s.value), *([s.origin] if origin else []), s.about] for s in settings]))


def _file(state: State, file: Path | None) -> Path:
    if file or state.config:
        return file or Path(str(state.config))
    mine = config_file(os.environ)
    return mine if mine.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


def _value(config: Config, key: str) -> Any:
    """The value in the form in which the file would say it."""
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    if key.endswith(".listen"):
        return f"{value[0]}:{value[1]}" if value else "off"
    if key == "workers.count":
        return value or "auto"
    if key == "directory.signers":
        return [signer.hex() for signer in value]
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
