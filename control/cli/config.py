"""nyxctl config: what a configuration says, whether it is right, what runs, what ran before, and changing it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from control.cli.output import echo, plural, print_json, table
from control.cli.state import EXIT_CONFIG, EXIT_FAILURE, EXIT_UNREACHABLE, EXIT_USAGE, Failure, State, json_option
from control.places import SYSTEM_CONFIG, config_file
from control.schemas import ConfigChange, ConfigCheck, ConfigEdit, ConfigHistory, ConfigShow, ConfigValue, ConfigVersion, Setting
from nyx.config import KEYS, known_key, load, setting
from nyx.errors import ConfigError

_TIME = "%Y-%m-%d %H:%M:%S"
_UNKNOWN = frozenset({"timeout", "unreachable", "protocol"})  # ends after which the node may run what was written


@click.group()
def command() -> None:
    """Check, show and change the configuration; see what ran before, and go back."""


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
@click.option("--running", is_flag=True, help="Show what the node runs with, instead of what the files say.")
@json_option
@click.pass_obj
def show(state: State, file: Path | None, *, origin: bool, running: bool) -> None:
    """Show every key with the value that a node started now would use."""
    if running:
        if file:
            raise click.UsageError("--running asks the node: it takes no FILE")
        document = _ask(state, "config")
        rows = [Setting(**row) for row in document["settings"]]
    else:
        path = _file(state, file)
        rows = _settings(path)
        document = ConfigShow(str(path), rows).to_json()
    if state.json:
        print_json(document)
        return
    import json

    heads = ["key", "value", *(["origin"] if origin else []), "meaning"]
    echo(table(heads, [[s.key, json.dumps(s.value), *([s.origin] if origin else []), s.about] for s in rows]))


@command.command()
@click.argument("key")
@click.option("--running", is_flag=True, help="The value that the node runs with, instead of the files'.")
@json_option
@click.pass_obj
def get(state: State, key: str, *, running: bool) -> None:
    """Print the value of one key, as a file would say it."""
    found = known_key(key)
    rows = [Setting(**row) for row in _ask(state, "config")["settings"]] if running else _settings(_file(state, None))
    row = next(row for row in rows if row.key == key)
    if state.json:
        print_json(ConfigValue(key, row.value, row.origin, found.about, found.read.allowed, found.live))
        return
    import json

    click.echo(row.value if isinstance(row.value, str) else json.dumps(row.value, ensure_ascii=False))


@command.command(name="set")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY VALUE [KEY VALUE]...")
@click.option("--no-reload", is_flag=True, help="Write the file only; the node takes it with its next reload.")
@json_option
@click.pass_obj
def set_keys(state: State, pairs: tuple[str, ...], *, no_reload: bool) -> None:
    """Change keys in the configuration file, keeping its comments, and reload the node when it runs.

    The whole configuration is checked before anything is written. Lists are one text: rules of exit.policy with ; between
    them, directory.signers with commas.
    """
    if len(pairs) % 2:
        raise click.UsageError(f"{pairs[-1]} has no value: give KEY VALUE")
    from nyx.config import value_of

    wanted = {key: value_of(known_key(key).name, text) for key, text in zip(pairs[::2], pairs[1::2], strict=True)}
    _change(state, wanted, "set", reload=not no_reload)


@command.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--no-reload", is_flag=True, help="Write the file only; the node takes it with its next reload.")
@json_option
@click.pass_obj
def unset(state: State, keys: tuple[str, ...], *, no_reload: bool) -> None:
    """Remove keys from the configuration files: their defaults hold again."""
    _change(state, dict.fromkeys(known_key(key).name for key in keys), "set", reload=not no_reload)


@command.command()
@json_option
@click.pass_obj
def diff(state: State) -> None:
    """Show what the files say otherwise than what the node runs with, and what a reload would do."""
    document = _ask(state, "config_diff")
    if state.json:
        print_json(document)
        return
    from control.cli.reload import change_lines

    changes = document["changes"]
    if changes:
        echo([f"{document['file']} against version {document['config']}, which runs:", *change_lines(changes)])
    else:
        click.echo(f"{document['file']} says what version {document['config']} runs with")


@command.command()
@json_option
@click.pass_obj
def history(state: State) -> None:
    """Show the versions of the configuration that were in force, newest first, with what each changed."""
    document = _history(state)
    if state.json:
        print_json(document)
        return
    import time

    from control.cli.reload import change_lines

    for version in document["versions"]:
        mark = "  running" if version["config"] == document["running"] else ""
        when = time.strftime(_TIME, time.localtime(version["time"]))
        echo([f"version {version['config']}  {when}  {version['origin']}{mark}", *change_lines(version["changes"])])
    if not document["versions"]:
        click.echo("no version has been in force yet", err=True)


@command.command()
@click.argument("version", required=False, type=click.IntRange(min=1))
@json_option
@click.pass_obj
def rollback(state: State, version: int | None) -> None:
    """Go back to an earlier VERSION, or to the one before, and reload the node when it runs.

    The keys that differ are changed in the configuration files, so the next reload or start does not bring them back.
    """
    document = _history(state)
    numbers = [row["config"] for row in document["versions"]]
    if version is None:
        if len(numbers) < 2:
            raise Failure(EXIT_FAILURE, "not_found", "there is no version before this one")
        version = int(numbers[1])
    if version not in numbers:
        kept = ", ".join(map(str, numbers)) or "none"
        raise Failure(EXIT_FAILURE, "not_found", f"there is no version {version} to go back to; kept are: {kept}")
    file, running = _target(state)
    then, origins = _kept(state, running, Path(document["state_dir"]), version)
    wanted = {**{row["key"]: row["value"] for row in running["settings"]}, **_waiting(running)} if running else None
    now = wanted or {row.key: row.value for row in _settings(file)}
    changed = {
        key: None if origins.get(key) == "built in" else value for key, value in then.items() if key in now and now[key] != value
    }
    if not changed:
        raise Failure(EXIT_FAILURE, "no_change", f"version {version} says what the files say: there is nothing to go back to")
    _change(state, changed, "rollback", reload=True)


# ---------------------------------------------------------------- files and nodes


def _file(state: State, file: Path | None) -> Path:
    if file or state.config:
        return file or Path(str(state.config))
    if state.socket or state.node:
        return Path(_ask(state, "config")["file"])
    mine = config_file(os.environ)
    return mine if mine.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


def _settings(path: Path) -> list[Setting]:
    config = load(path, environ=os.environ)
    return [Setting(key.name, setting(config, key.name), config.origins[key.name], key.about) for key in KEYS]


def _ask(state: State, op: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    from control.cli.node import ask
    from control.cli.reload import RELOAD_TIME

    return ask(state, op, args, RELOAD_TIME)


def _target(state: State) -> tuple[Path, dict[str, Any] | None]:
    """The main file to write, and what the node that was started with it runs with (None: it does not run)."""
    try:
        running = _ask(state, "config")
    except Failure as error:
        if error.exit_code != EXIT_UNREACHABLE or state.socket or state.node:
            raise
        return _file(state, None), None
    except ConfigError:  # of --config, which names the socket: it may be what is about to be mended
        return _file(state, None), None
    file = Path(running["file"])
    own = _file(state, None)
    return (own, None) if own.exists() and not own.samefile(file) and not (state.socket or state.node) else (file, running)


def _waiting(running: Mapping[str, Any]) -> dict[str, Any]:
    return {change["key"]: change["new"] for change in running["waiting"]}


def _history(state: State) -> dict[str, Any]:
    """The history as the node tells it, or as its folder says where none runs."""
    file, running = _target(state)
    if running:
        return _ask(state, "config_history")
    from nyx.history import History

    state_dir = load(file, environ=os.environ).node.state_dir
    versions = [
        ConfigVersion(
            entry.version, entry.time, entry.origin,
            [ConfigChange(c.key, c.old, c.new, c.live, _effect(c.key, live=c.live)) for c in entry.changes],
        )
        for entry in reversed(History(state_dir).entries())
    ]  # fmt: skip
    return ConfigHistory(str(state_dir), None, versions).to_json()


def _kept(
    state: State, running: Mapping[str, Any] | None, state_dir: Path, version: int
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Settings and origins of a kept version: the node reads them, for its files are its user's alone."""
    if running:
        document = _ask(state, "config_kept", {"version": version})
        return document["settings"], document["origins"]
    from nyx.history import History

    entry = History(state_dir).entry(version)
    if entry is None:
        raise Failure(EXIT_FAILURE, "not_found", f"version {version} cannot be read")
    return entry.settings, entry.origins


def _effect(key: str, *, live: bool) -> str:
    return next((k.live for k in KEYS if k.name == key and k.live), "") if live else "needs a restart"


def _change(state: State, wanted: Mapping[str, Any], origin: str, *, reload: bool) -> None:
    """Write these keys (None: remove), checked before and taken back when the node refuses; reload; tell."""
    from control.config_file import Edit

    file, running = _target(state)
    _refuse_overridden(wanted, running, file)
    edit = Edit(file, os.environ)
    for key, value in wanted.items():
        if value is None:
            edit.remove(key)
        else:
            edit.set(key, value)
    changes = [ConfigChange(c.key, c.old, c.new, c.live, _effect(c.key, live=c.live)) for c in edit.check()]
    files = edit.write()
    running = running or _target(state)[1]
    said = None
    if running and reload:
        try:
            said = _ask(state, "reload", {"origin": origin})
        except Failure as error:
            if error.code not in _UNKNOWN:
                edit.take_back()
            raise
    _tell(state, ConfigEdit(files, changes, said))


def _refuse_overridden(wanted: Mapping[str, Any], running: Mapping[str, Any] | None, file: Path) -> None:
    """A key that the environment or a flag decides does not change by writing a file: say so. Raises Failure."""
    rows = running["settings"] if running else [{"key": row.key, "origin": row.origin} for row in _quiet_settings(file)]
    for row in rows:
        if row["key"] in wanted and (row["origin"].startswith("NYX_") or row["origin"] == "flag"):
            where = "the node's environment or flags" if running else "the environment"
            message = f"{row['key']} is set by {row['origin']} in {where}, which wins over every file: change it there"
            raise Failure(EXIT_USAGE, "overridden", message)


def _quiet_settings(file: Path) -> list[Setting]:
    try:
        return _settings(file)
    except ConfigError:
        return []  # what is wrong may be what is about to be mended


def _tell(state: State, document: ConfigEdit) -> None:
    if state.json:
        print_json(document)
        return
    from control.cli.reload import change_lines
    from control.cli.reload import lines as reload_lines

    if not document.files:
        click.echo("the files say so already")
    else:
        click.echo(f"{', '.join(document.files)}: {plural(len(document.changes), 'key')} changed")
    if document.reload:
        echo(reload_lines(document.reload))
    else:
        echo(
            change_lines(
                [{"key": c.key, "old": c.old, "new": c.new, "live": c.live, "effect": c.effect} for c in document.changes]
            )
        )
        click.echo("no node was reloaded", err=True)
