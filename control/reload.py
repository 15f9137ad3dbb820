"""A reload as a transaction over all processes of the node: `nyxctl reload`, SIGHUP and every other way lead here.

    read     the files, with every error at once                       wrong: nothing was changed
    stage    the supervisor checks it again, writes the next version   wrong: nothing was changed
    prepare  every worker makes it ready                               wrong: nothing was changed
    commit   the supervisor stores one word; each worker takes the version at its next turn

A worker that dies on the way begins its next life with what is in force then: if it was not asked, or has forgotten, it needs
nothing to be asked again. One reload at a time. Source: docs/configuration.md, "Reload".
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from control import logs, schemas
from control.channel import Channel, Supervisor, WorkerRefusedError, WorkerSilentError
from control.pages import Pages
from control.wire import Refusal
from nyx.changes import Change, compare
from nyx.committed import Committed, Version
from nyx.config import KEYS, from_settings, load, settings
from nyx.errors import ConfigError
from nyx.history import Entry, History
from nyx.wire.admin import Op
from nyx.wire.envelope import MESSAGE_MAX, dump
from nyx.wire.orders import Notice, Order

ORIGINS: Final = frozenset({"reload", "SIGHUP", "set", "rollback", "api"})
PREPARE_TIME: Final = 30.0  # seconds for a worker that runs to prepare, its restarts included
TAKE_TIME: Final = 2.0  # seconds for all workers to say that they run the version
TELL_TIME: Final = 2.0  # seconds for the supervisor to hear of a reload
COMMAND_TIME: Final = 10.0  # seconds for the supervisor to read and check a directory of any size, or to write the history
_PAUSE: Final = 0.02
_ORDER_MAX: Final = MESSAGE_MAX - 256  # bytes of an order's arguments

_log: Final = logging.getLogger(__name__)


class Reloader:
    """The versions of this node's configuration, as the control process serves them; `operations` are for its socket."""

    def __init__(
        self, file: Path, committed: Committed, supervisor: Supervisor, channels: Sequence[Channel], pages: Pages, alias: str
    ) -> None:
        self._file = file
        self._committed = committed
        self._supervisor = supervisor
        self._channels = channels
        self._pages = pages
        self._alias = alias
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly

        self.operations: dict[str, Callable[[Mapping[str, Any]], Awaitable[schemas.Document]]] = {
            "reload": self._reload,
            "config": self._show,
            "config_diff": self._diff,
            "config_history": self._tell_history,
            "config_kept": self._tell_kept,
        }

    @property
    def running(self) -> Version:
        """The version in force."""
        return self._committed.text_of(self._committed.word)

    # ------------------------------------------------------------ the transaction

    async def reload(self, origin: str) -> schemas.Reload:
        """Read the files and put in force what they say. Raises Refusal: then nothing was changed."""
        async with self._one_at_a_time, self._told():
            before = self.running
            try:
                wanted = load(self._file, environ=os.environ)
                order = {"settings": settings(wanted), "origins": dict(wanted.origins), "origin": origin}
                if len(dump(order)) > _ORDER_MAX:
                    raise ConfigError([f"{self._file}: the whole configuration is too long: shorten exit.policy"])
                staged = await self._command(Order.STAGE_CONFIG, order)
                if "problems" in staged:
                    raise ConfigError(list(staged["problems"]))
            except ConfigError as error:
                end = f"nothing was changed; version {before.number} still runs"
                raise Refusal("config", "\n".join([*error.problems, end])) from error
            if not staged["new"]:
                return self._said(before, before, {})
            number = int(staged["version"])
            await self._prepare(number, before)
            await self._command(Order.COMMIT_CONFIG, {"version": number})
            logs.configure(from_settings(self.running.settings).log)
            taken = await self._wait_for(number)
            _log.info("version %d of the configuration runs (%s)", number, origin)
            return self._said(before, self.running, taken)

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """The supervisor tells the service manager of the beginning and the end of a reload."""
        refused = True
        with contextlib.suppress(WorkerRefusedError, WorkerSilentError):
            await self._supervisor.order(Order.RELOAD_BEGINS, {}, TELL_TIME)
        try:
            yield
            refused = False
        finally:
            with contextlib.suppress(WorkerRefusedError, WorkerSilentError):
                await self._supervisor.order(Order.RELOAD_ENDS, {"refused": refused}, TELL_TIME)

    def on_notice(self, notice: Notice) -> None:
        """SIGHUP came: the same, with the log for an answer."""
        if notice is Notice.RELOAD:
            task = asyncio.get_running_loop().create_task(self._on_hangup())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _on_hangup(self) -> None:
        try:
            found = await self.reload("SIGHUP")
        except Refusal as error:
            for line in str(error).splitlines():
                _log.error("reload: %s", line)
            return
        if not found.changed:
            _log.info("reload: nothing differs from version %d, which runs", found.config)

    async def _command(self, order: Order, args: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._supervisor.order(order, args, COMMAND_TIME)
        except WorkerRefusedError as error:
            raise Refusal("failure", str(error)) from error
        except WorkerSilentError as error:
            raise Refusal("timeout", f"{error}; nyxctl status tells which version runs") from error

    async def _prepare(self, number: int, before: Version) -> None:
        async def one(channel: Channel) -> str:
            until = time.monotonic() + PREPARE_TIME
            why = ""
            while time.monotonic() < until:
                try:
                    await channel.ask(Op.PREPARE, {"version": number})
                    return ""
                except WorkerRefusedError as error:
                    return str(error)
                except WorkerSilentError as error:
                    why = str(error)
                    if not self._alive(channel.worker):
                        return ""  # its next life begins with what is in force then
                    if channel.closed:
                        break
            return why

        wrong = [why for why in await asyncio.gather(*(one(channel) for channel in self._channels)) if why]
        if wrong:
            raise Refusal("failure", "\n".join([*wrong, f"nothing was changed; version {before.number} still runs"]))

    def _alive(self, worker: int) -> bool:
        table = self._pages.processes()
        return table is None or worker >= len(table.workers) or bool(table.workers[worker].pid)

    async def _wait_for(self, number: int) -> dict[int, int]:
        """The version that each worker says it runs, once all say this one or the time is over."""

        async def one(channel: Channel) -> tuple[int, int]:
            said = 0
            until = time.monotonic() + TAKE_TIME
            while time.monotonic() < until:
                try:
                    said = int((await channel.ask(Op.STATUS)).get("config", 0))
                except (WorkerSilentError, WorkerRefusedError):
                    said = 0
                if said >= number or (not said and not self._alive(channel.worker)):
                    break
                await asyncio.sleep(_PAUSE)
            return channel.worker, said

        return dict(await asyncio.gather(*(one(channel) for channel in self._channels)))

    def _said(self, before: Version, after: Version, taken: Mapping[int, int]) -> schemas.Reload:
        entry = self._history().entry(after.number) if after.number != before.number else None
        applied = [_change(change) for change in (entry.changes if entry else []) if change.live]
        waiting = [_change(Change(key, after.settings.get(key), value, live=False)) for key, value in after.waiting.items()]
        workers = [schemas.WorkerVersion(worker, version) for worker, version in sorted(taken.items())]
        changed = after.number != before.number
        return schemas.Reload(self._alias, str(self._file), after.number, before.number, changed, applied, waiting, workers)

    # ------------------------------------------------------------ what is told

    async def _reload(self, args: Mapping[str, Any]) -> schemas.Document:
        origin = args.get("origin", "reload")
        if origin not in ORIGINS:
            raise Refusal("bad_request", f"origin must be one of {', '.join(sorted(ORIGINS))}")
        return await self.reload(origin)

    async def _show(self, _args: Mapping[str, Any]) -> schemas.Document:
        """Every key in force."""
        version = self.running
        rows = [
            schemas.Setting(key.name, version.settings.get(key.name), version.origins.get(key.name, "built in"), key.about)
            for key in KEYS
        ]
        waiting = [_change(Change(key, version.settings.get(key), value, live=False)) for key, value in version.waiting.items()]
        return schemas.RunningConfig(
            self._alias, str(self._file), version.number, version.time, version.origin, rows, waiting, str(self._state_dir())
        )

    async def _diff(self, _args: Mapping[str, Any]) -> schemas.Document:
        """What the files say otherwise than what runs. Raises Refusal."""
        version = self.running
        try:
            wanted = settings(load(self._file, environ=os.environ))
        except ConfigError as error:
            raise Refusal("config", "\n".join(error.problems)) from error
        changes = [_change(change) for change in compare(version.settings, wanted)]
        return schemas.ConfigDiff(self._alias, str(self._file), version.number, changes)

    async def _tell_history(self, _args: Mapping[str, Any]) -> schemas.Document:
        """The versions that were in force, newest first."""
        running = self.running.number
        entries = [entry for entry in self._history().entries() if entry.version <= running]
        return schemas.ConfigHistory(str(self._state_dir()), running, [_entry(entry) for entry in reversed(entries)])

    async def _tell_kept(self, args: Mapping[str, Any]) -> schemas.Document:
        """One version that was in force, whole."""
        number = args.get("version")
        if type(number) is not int:
            raise Refusal("bad_request", "version must be a number")
        entry = self._history().entry(number) if number <= self.running.number else None
        if entry is None:
            raise Refusal("not_found", f"version {number} is not kept")
        return schemas.ConfigKept(number, dict(entry.settings), dict(entry.origins))

    def _state_dir(self) -> Path:
        return Path(self.running.settings["node.state_dir"])

    def _history(self) -> History:
        return History(self._state_dir())


def _change(change: Change) -> schemas.ConfigChange:
    effect = next((key.live for key in KEYS if key.name == change.key), "paths chosen after it")
    return schemas.ConfigChange(change.key, change.old, change.new, change.live, effect if change.live else "needs a restart")


def _entry(entry: Entry) -> schemas.ConfigVersion:
    return schemas.ConfigVersion(entry.version, entry.time, entry.origin, [_change(change) for change in entry.changes])
