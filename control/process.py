"""The control process of a node, started by the supervisor: `python -m control.process`.

It inherits what it needs as descriptors, named by NYX_CONTROL_FDS, a JSON object:

    config      path of the configuration file
    workers     descriptors of this side of each worker's channel, in the order of the workers
    supervisor  descriptor of this side of the supervisor's channel, or null
    statistics  descriptor of the statistics' memory, or null
    node        descriptor of the process table's memory, or null
    filter      its filter of system calls in base64, empty where there can be none, or null: it does not seal itself
    versions    descriptor of the memory of the configuration's versions, or null: the files are all that is known
    admin       descriptor of the listening admin socket, or a path to bind, or null: the configuration's path

It owns nothing that must survive it: when it dies the supervisor starts another with the same descriptors. It dies with the
supervisor, and never touches a packet or a key.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from setproctitle import setproctitle

from control import logs, observe, server
from control.channel import Channel, Supervisor
from control.leftovers import remove_sockets
from control.pages import Pages, map_columns
from control.reload import Reloader
from control.seal import seal
from control.service import Service
from nyx.committed import Committed, committed_columns
from nyx.config import Config, from_settings, load
from nyx.errors import ConfigError, InternalError, NyxError
from nyx.logline import Style

VARIABLE: Final = "NYX_CONTROL_FDS"
EXIT_CONFIG: Final = 78
_PR_SET_PDEATHSIG: Final = 1

_log: Final = logging.getLogger("nyxd.control")


def main() -> int:
    """Run until SIGTERM, SIGINT or the supervisor's death; the exit code."""
    logs.configure(Style())
    try:
        inherited = parse(os.environ.pop(VARIABLE, ""))
        committed, pages = _memory(inherited)
        config = _in_force(committed) or load(Path(inherited["config"]), environ=os.environ)
        logs.configure(config.log)
        if not _tie_to_parent(pages):
            return 0
        setproctitle(f"nyxd: control ({config.node.alias})")
        asyncio.run(_run(config, inherited, pages, committed))
    except ConfigError as error:
        for problem in error.problems:
            _log.error("%s", problem)
        return EXIT_CONFIG
    except NyxError as error:
        _log.error("%s", error)
        return 1
    return 0


def parse(text: str) -> dict[str, Any]:
    """The inherited descriptors. Raises ConfigError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError([f"{VARIABLE} is not JSON: nyxd starts this process, nobody else"]) from error
    if not isinstance(value, dict) or not isinstance(value.get("config"), str) or not isinstance(value.get("workers"), list):
        raise ConfigError([f"{VARIABLE} lacks config or workers"])
    numbers = [
        *value["workers"],
        *(value[name] for name in ("supervisor", "statistics", "node", "versions") if value.get(name) is not None),
    ]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ConfigError([f"{VARIABLE} names a descriptor that is no number"])
    if not isinstance(value.get("filter"), str | None):
        raise ConfigError([f"{VARIABLE} has a filter that is no text"])
    return dict.fromkeys(("admin", "supervisor", "statistics", "node", "versions", "filter")) | value


def _memory(inherited: Mapping[str, Any]) -> tuple[Committed | None, Pages]:
    """The supervisor's memory; none of it where other code was installed that would lay it out differently.

    A process that is started anew then lives to be told `nyxctl upgrade`.
    """
    workers = len(inherited["workers"])
    try:
        pages = Pages(_descriptor(inherited["statistics"]), _descriptor(inherited["node"]), workers)
        return _committed(inherited["versions"]), pages
    except InternalError as error:
        _log.warning("%s: other code is installed than the node runs. Figures are missing until: nyxctl upgrade", error)
        return None, Pages(-1, -1, workers)


def _descriptor(value: int | None) -> int:
    return -1 if value is None else value


def _committed(fd: int | None) -> Committed | None:
    """The versions of the configuration, where the supervisor keeps them."""
    columns = map_columns(_descriptor(fd), committed_columns())
    found = Committed(columns) if columns else None
    return found if found and found.word else None


def _in_force(committed: Committed | None) -> Config | None:
    """The configuration in force: what the files say by now may be another, or nothing that can be read."""
    if committed is None:
        return None
    version = committed.text_of(committed.word)
    return from_settings(version.settings, version.origins)


def _tie_to_parent(pages: Pages) -> bool:
    """Ask for SIGTERM at the supervisor's death; False when it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return _has_parent(pages)


def _has_parent(pages: Pages) -> bool:
    """Whether the supervisor lives, as far as we know one."""
    table = pages.processes()
    return table is None or table.supervisor in (0, os.getppid())


async def _run(config: Config, inherited: Mapping[str, Any], pages: Pages, committed: Committed | None) -> None:
    channels = [Channel(i, socket.socket(fileno=fd)) for i, fd in enumerate(inherited["workers"])]
    supervisor = None if inherited["supervisor"] is None else Supervisor(socket.socket(fileno=inherited["supervisor"]))
    reloader = None
    if supervisor and committed:
        reloader = Reloader(Path(inherited["config"]), committed, supervisor, channels, pages, config.node.alias)
        supervisor.on_notice = reloader.on_notice
    with _listener(inherited["admin"], config) as listener:
        service = Service(config, channels, pages, supervisor, reloader)
        if (program := inherited["filter"]) is not None:
            service.sealed = seal(program, inspect=config.node.inspect)
        asked = [*channels, supervisor] if supervisor else channels
        tasks = [asyncio.create_task(channel.run()) for channel in asked]
        serving = asyncio.create_task(server.Server(listener, service.handle).run())
        tasks += observe.start(config, service, pages)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(inherited["admin"], int) and not _has_parent(pages):
        remove_sockets(config.node.run_dir)


@contextlib.contextmanager
def _listener(admin: int | str | None, config: Config) -> Any:
    """The admin socket: the inherited one, or one of our own that goes with us."""
    if isinstance(admin, int):
        yield socket.socket(fileno=admin)
        return
    path = Path(admin) if admin else config.control_socket
    try:
        yield server.bind(path)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
