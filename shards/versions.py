"""The supervisor's part in a reload: stage a version of the configuration, and put it in force.

Place on a packet's way: none. The control process has read the files; what it wants is checked again here, for this process
outlives it and writes the memory that all others believe. Between the two orders every worker prepares the staged version. The
history is written first, then the one word is stored: a version in force always has its entry, and the disk that is full stops
a reload while nothing has changed.

    stage_config   settings, origins, origin -> number of the version, whether it is a new one
    commit_config  version                   -> number of the version in force
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nyx.changes import DIRECTORY, Change, compare, plan
from nyx.columns import Columns
from nyx.committed import Committed, DirectoryRef, Version
from nyx.config import Config, from_settings, settings
from nyx.errors import ConfigError, InternalError, NyxError
from nyx.history import Entry, History
from nyx.path.directory import DirectoryError, FileDirectory, Snapshot
from shards import say

_ORIGIN_MAX: Final = 64  # characters


class Versions:
    """All versions of one node's configuration, from its start on. `wake` lets sleeping workers look at the word."""

    def __init__(self, columns: Columns, state_dir: Path, wake: Callable[[], None]) -> None:
        self._committed = Committed(columns)
        self._history = History(state_dir)
        self._wake = wake
        self._staged: tuple[Version, Entry, Snapshot | None] | None = None

    # ------------------------------------------------------------ at the start

    def begin(self, config: Config, snapshot: Snapshot, data: bytes, wall: int) -> str:
        """Put in force what the node is started with, or started anew with; a warning where the history takes nothing."""
        wanted, place = settings(config), DirectoryRef(snapshot.sequence, snapshot.digest.hex(), wall, 0, 0)
        before, word = self._history.newest(), self._committed.word
        known = before is not None and before.settings == wanted and before.directory.get("digest") == place.digest
        if before and known and word in (0, before.version):
            number = before.version
        else:
            number, known = (word or max(self._history.numbers(), default=0)) + 1, False
        warning = ""
        if number != word:
            version = Version(number, wanted, config.origins, {}, place, "start", wall)
            self._committed.stage(version, data)
            warning = "" if known else self._remember(version, before)
            self._committed.commit(number)
        return warning

    def _remember(self, version: Version, before: Entry | None) -> str:
        """Add the version of a start to the history; a start does not fail for it."""
        changes = [Change(c.key, c.old, c.new, live=True) for c in compare(before.settings, version.settings)] if before else []
        if before and before.directory.get("digest") != version.directory.digest:
            changes.append(Change(DIRECTORY, before.directory.get("sequence"), version.directory.sequence, live=True))
        try:
            self._history.add(_entry(version, changes))
        except (OSError, ConfigError) as error:
            return f"the history of the configuration takes nothing: {error}"
        return ""

    # ------------------------------------------------------------ orders

    def stage(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Write the next version to where everybody can prepare it. What the files should not say is answered as problems."""
        try:
            return self._stage(args)
        except ConfigError as error:
            return {"problems": error.problems}

    def _stage(self, args: Mapping[str, Any]) -> dict[str, Any]:
        wanted, origins, origin = args.get("settings"), args.get("origins"), args.get("origin")
        if not isinstance(wanted, dict) or not isinstance(origins, dict) or not isinstance(origin, str):
            raise InternalError("stage_config needs settings, origins and origin")
        if not all(isinstance(place, str) for place in (*origins.values(), origin)) or len(origin) > _ORIGIN_MAX:
            raise InternalError("an origin is a short text")
        self._staged = None
        running = self._committed.text_of(self._committed.word)
        found = plan(running.settings, settings(from_settings(wanted, origins)))
        wall = int(time.time())
        snapshot, data = self._directory(running, found.settings, wall)
        waiting = {change.key: change.new for change in found.waiting}
        if not found.applied and snapshot is None and waiting == running.waiting:
            return {"version": running.number, "new": False}
        changes = [*found.applied, *found.waiting]
        place = running.directory
        if snapshot is not None:
            place = DirectoryRef(snapshot.sequence, snapshot.digest.hex(), wall, 0, 0)
            if place.digest != running.directory.digest:
                changes.append(Change(DIRECTORY, running.directory.sequence, snapshot.sequence, live=True))
        version = Version(running.number + 1, found.settings, origins, waiting, place, origin, wall)
        version = self._committed.stage(version, data if snapshot else None)
        self._staged = version, _entry(version, changes), snapshot
        return {"version": version.number, "new": True}

    def _directory(self, running: Version, wanted: Mapping[str, Any], wall: int) -> tuple[Snapshot | None, bytes]:
        """The snapshot that the directory's file holds; None where it is the one in force. Raises ConfigError."""
        config = from_settings(wanted)
        source = _source(config)
        try:
            data = source.read()
            believed_as = all(wanted[key] == running.settings[key] for key in ("directory.signers", "directory.threshold"))
            if believed_as and data == self._committed.snapshot_of(running):
                return None, data
            return source.verified(data, wall), data
        except DirectoryError as error:
            raise ConfigError([f"{config.directory.file}: {error}"]) from error

    def commit(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Put the staged version in force. Raises NyxError; the version before stays in force then."""
        staged, self._staged = self._staged, None
        if staged is None or staged[0].number != args.get("version"):
            raise NyxError("no such version is staged: another reload came between, or the node was upgraded; try again")
        version, entry, snapshot = staged
        try:
            self._history.add(entry)
            if snapshot is not None:
                _source(from_settings(version.settings)).pin(snapshot)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._history.remove(version.number)
            what = f"{error.filename or 'the state folder'}: cannot be written: {error.strerror}"
            raise NyxError(f"{what}; make room, or let this user write there. Nothing was changed") from error
        self._committed.commit(version.number)
        say.configure(from_settings(version.settings).log)
        self._wake()
        return {"version": version.number}


def _source(config: Config) -> FileDirectory:
    return FileDirectory(config.directory.file, config.directory.signers, config.directory.threshold, config.pin_file)


def _entry(version: Version, changes: list[Change]) -> Entry:
    directory = {"sequence": version.directory.sequence, "digest": version.directory.digest}
    return Entry(version.number, version.time, version.origin, changes, version.settings, version.origins, directory)
