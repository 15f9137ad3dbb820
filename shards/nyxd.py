"""The command `nyxd`: check everything, then become the supervisor of one node.

Exit codes: 0 stopped when asked, 1 cannot start or run, 2 wrong use, 78 configuration, keys or directory to be mended: then every
problem stands on stderr, and nothing has been started. stdout carries one line, READY, once all processes run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nyx import __version__
from nyx.config import Config, load
from nyx.crypto.keyfile import load_keys
from nyx.crypto.keys import StaticKeys
from nyx.errors import ConfigError, NyxError
from nyx.files import private_folder
from nyx.path.directory import DirectoryError, FileDirectory, Snapshot
from shards import say
from shards.notify import Notifier
from shards.user import adopt_environment, become, other_user

EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
SYSTEM_FILE: Final = Path("/etc/nyx/nyx.toml")


class Checked(NamedTuple):
    """What a node needs, read and found right."""

    config: Config
    keys: StaticKeys | None
    snapshot: Snapshot
    directory: bytes  # the snapshot as it was read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = _parse(arguments)
    try:
        file = (options.config or _default_file()).absolute()
        settings = dict(options.set or ())
        checked = check(file, settings, write=not (options.check or options.plan))
        if options.check:
            sys.stdout.write(f"{file}: right; node {checked.config.node.alias}, {len(checked.snapshot.nodes)} nodes known\n")
            return 0
        if options.plan:
            return _plan(checked.config)
        return _run(file, checked, settings, offload=not options.no_offload)
    except ConfigError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        return EXIT_CONFIG
    except (NyxError, OSError, MemoryError, ImportError, subprocess.CalledProcessError) as error:
        say.fail(_no_memory(error) or str(error))
        return 1


def _no_memory(error: Exception) -> str | None:
    """The sentence where memory ran out: a library that finds none for itself says so in one of three ways."""
    if isinstance(error, MemoryError | ImportError) or (isinstance(error, OSError) and error.errno is None):
        return f"no memory to start ({str(error) or 'none left'}): allow this node more (ulimit -v)"
    return None


def check(file: Path, flags: dict[str, str], *, write: bool) -> Checked:
    """Read and verify everything the node is built from. `write`: make its folders and pin the directory's sequence.

    Raises ConfigError with all problems found, NyxError when the state folder takes nothing.
    """
    config = _load_as_user(file, flags, write=write)
    problems: list[str] = []
    keys = snapshot = None
    data = b""
    try:
        if write:
            for folder in (config.node.state_dir, config.node.run_dir):
                private_folder(folder)
        keys = None if config.node.role == "client" else load_keys(config.key_file)
    except ConfigError as error:
        problems += error.problems
    try:
        pin = config.pin_file if config.pin_file.exists() or (write and not problems) else None
        directory = FileDirectory(config.directory.file, config.directory.signers, config.directory.threshold, pin)
        data = directory.read()
        snapshot = directory.verified(data, int(time.time()))
        directory.pin(snapshot)
    except DirectoryError as error:
        problems.append(f"{config.directory.file}: {error}")
    except OSError as error:
        why = error.strerror or str(error)
        raise NyxError(f"{config.pin_file}: cannot be written: {why}; make room, or let this user write there") from error
    if problems or snapshot is None:
        raise ConfigError(problems)
    return Checked(config, keys, snapshot, data)


def _load_as_user(file: Path, flags: dict[str, str], *, write: bool) -> Config:
    """The configuration as the node's user reads it, whom this process has become. Raises ConfigError."""
    config = load(file, environ=os.environ, flags=flags)
    account = other_user(config.node.user) if config.node.user else None
    if account is None:
        return config
    adopt_environment(account, os.environ)
    config = load(file, environ=os.environ, flags=flags)
    node = config.node
    become(account, dict.fromkeys((node.state_dir, node.run_dir)) if write else ())
    os.environ.setdefault("NYX_CACHE_DIR", str(node.state_dir / "cache"))
    if not os.access(file, os.R_OK):
        raise ConfigError([f"{file}: user {account.pw_name} (node.user) cannot read it"])
    return config


def _plan(config: Config) -> int:
    """What an upgrade to this code and configuration would work on, after everything that can fail before it has been tried."""
    from shards.kernels import prepare

    prepare(lambda text: print(f"nyxd: {text}", file=sys.stderr, flush=True))

    from shards import upgrade  # after the kernels, as below
    from shards.rehearsal import obstacles
    from shards.supervisor import worker_count
    from shards.worker import worker_columns

    workers, own = worker_count(config), worker_columns(config)
    plan = upgrade.describe(config, workers, own) | {"obstacles": obstacles(config, workers, own)}
    print(json.dumps(plan), flush=True)
    return 0


def _run(file: Path, checked: Checked, settings: dict[str, str], *, offload: bool) -> int:
    """Load the kernels and supervise. The imports are here: a mistake in the configuration is told without loading a compiler."""
    from shards.kernels import prepare

    say.configure(checked.config.log)
    notifier = Notifier(os.environ)

    def tell(text: str) -> None:
        say.say("info", text)
        notifier.send(f"STATUS={text}")

    prepare(tell)
    notifier.close()

    from shards.supervisor import Plan, Supervisor  # not before: importing a kernel that is not cached compiles it, here
    from shards.upgrade import take_state
    from shards.worker import worker_columns, worker_main

    plan = Plan(
        config=checked.config,
        config_file=file,
        keys=checked.keys,
        snapshot=checked.snapshot,
        directory=checked.directory,
        main=worker_main,
        columns=worker_columns(checked.config),
        control=[sys.executable, "-m", "control.process"],
        entropy=os.urandom,
        wall=int(time.time()),
        offload=offload,
        settings=settings,
        command=sys.orig_argv,
        preflight=[*sys.orig_argv, "--plan"],
    )
    Supervisor(plan, take_state()).run(lambda line: print(line, flush=True))
    return 0


def _default_file() -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nyx" / "nyx.toml"
    return home if home.exists() else SYSTEM_FILE


def _setting(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, like path.hops=4")
    return key, value


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nyxd", description="Run one node of the Nyx network.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: your nyx/nyx.toml, else /etc/nyx/nyx.toml")
    parser.add_argument("--set", metavar="KEY=VALUE", type=_setting, action="append", help="a setting, over file and environment")
    parser.add_argument("--check", action="store_true", help="check configuration, keys and directory, and start nothing")
    parser.add_argument("--plan", action="store_true", help="check, load the kernels, print what would be held in memory")
    parser.add_argument("--no-offload", action="store_true", help="send and receive packets without segmentation offload")
    parser.add_argument("--version", action="version", version=f"nyxd {__version__}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
