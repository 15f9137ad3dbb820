"""nyx.v1.Configuration: what runs, what the files say, and changes as transactions; the operations and files of nyxctl config."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

from control import schemas
from control.api import convert
from control.api.generated import nyx_v1_pb2 as pb
from control.config_file import Edit
from control.service import Service
from control.wire import Refusal
from nyx.config import KEYS

VALUE_MAX: Final = 65536  # characters of a value as JSON
_EFFECTS: Final = {key.name: key.live for key in KEYS}


class Configuration:
    """The methods of the service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._one_at_a_time = asyncio.Lock()  # two edits of one file would undo each other

    async def get_config(self, _request: pb.GetConfigRequest) -> pb.Config:
        """Every key in force."""
        return convert.config(await self._running())

    async def diff_config(self, _request: pb.DiffConfigRequest) -> pb.DiffConfigResponse:
        """What the files say otherwise."""
        found = cast("schemas.ConfigDiff", await self._service.handle("config_diff", {}))
        return pb.DiffConfigResponse(version=found.config, changes=convert.changes(found.changes))

    async def reload(self, _request: pb.ReloadRequest) -> pb.ReloadResponse:
        """Put in force what the files say."""
        return convert.reload(await self._reload("api"))

    async def update_config(self, request: pb.UpdateConfigRequest) -> pb.UpdateConfigResponse:
        """Change keys and reload."""
        wanted: dict[str, Any] = {key: _value(key, text) for key, text in request.set_json.items()}
        if twice := wanted.keys() & set(request.remove):
            raise Refusal("bad_request", f"{', '.join(sorted(twice))}: both set and removed")
        wanted |= dict.fromkeys(request.remove)
        if not wanted:
            raise Refusal("bad_request", "set_json or remove must name a key")
        async with self._alone(request.if_version if request.HasField("if_version") else None) as running:
            return await self._change(running, wanted, "set", dry=request.dry_run)

    async def get_history(self, _request: pb.GetHistoryRequest) -> pb.GetHistoryResponse:
        """The versions that were in force."""
        found = await self._history()
        return pb.GetHistoryResponse(running=found.running or 0, versions=map(_entry, found.versions))

    async def get_version(self, request: pb.GetVersionRequest) -> pb.ConfigVersion:
        """One of them."""
        found = await self._kept(request.version)
        values = {key: convert.to_json(value) for key, value in found.settings.items()}
        return pb.ConfigVersion(version=found.config, settings_json=values, origins=found.origins)

    async def rollback(self, request: pb.RollbackRequest) -> pb.UpdateConfigResponse:
        """Go back: change the keys that differ, so that the next reload or start does not undo it."""
        async with self._alone(None) as running:
            if request.HasField("version"):
                number = request.version
            else:
                numbers = [row.config for row in (await self._history()).versions]
                if len(numbers) < 2:
                    raise Refusal("not_found", "there is no version before this one")
                number = numbers[1]
            then = await self._kept(number)
            now = {row.key: row.value for row in running.settings} | {change.key: change.new for change in running.waiting}
            changed = {
                key: None if then.origins.get(key) == "built in" else value
                for key, value in then.settings.items()
                if key in now and now[key] != value
            }
            if not changed:
                raise Refusal("no_change", f"version {number} says what the files say: there is nothing to go back to")
            return await self._change(running, changed, "rollback", dry=False)

    # ------------------------------------------------------------ a change as a transaction

    @asynccontextmanager
    async def _alone(self, version: int | None) -> AsyncIterator[schemas.RunningConfig]:
        """The configuration that runs, while no other call of the API changes it."""
        async with self._one_at_a_time:
            running = await self._running()
            if version is not None and version != running.config:
                raise Refusal("version_changed", f"version {running.config} is in force, not {version}")
            yield running

    async def _change(
        self, running: schemas.RunningConfig, wanted: Mapping[str, Any], origin: str, *, dry: bool
    ) -> pb.UpdateConfigResponse:
        """Write these keys (None: remove) and reload. What is refused leaves the files as they were."""
        _refuse_overridden(wanted, running.settings)
        edit = Edit(Path(running.file), os.environ)
        for key, value in wanted.items():
            if value is None:
                edit.remove(key)
            else:
                edit.set(key, value)
        rows = [
            schemas.ConfigChange(c.key, c.old, c.new, c.live, _EFFECTS[c.key] if c.live else "needs a restart")
            for c in edit.check()
        ]
        if dry:
            return pb.UpdateConfigResponse(changes=convert.changes(rows))
        try:
            files = edit.write()
        except OSError as error:
            raise Refusal("not_written", f"{running.file} cannot be written: {error.strerror}") from error
        try:
            said = await self._reload(origin)
        except Refusal as error:
            if error.code != "timeout":  # then nobody knows which version runs
                edit.take_back()
            raise
        return pb.UpdateConfigResponse(files=files, changes=convert.changes(rows), reload=convert.reload(said))

    async def _running(self) -> schemas.RunningConfig:
        return cast("schemas.RunningConfig", await self._service.handle("config", {}))

    async def _reload(self, origin: str) -> schemas.Reload:
        """Reload to the end, even when the client has gone: half of a change helps nobody."""
        return cast("schemas.Reload", await asyncio.shield(self._service.handle("reload", {"origin": origin})))

    async def _history(self) -> schemas.ConfigHistory:
        return cast("schemas.ConfigHistory", await self._service.handle("config_history", {}))

    async def _kept(self, version: int) -> schemas.ConfigKept:
        return cast("schemas.ConfigKept", await self._service.handle("config_kept", {"version": version}))


def _value(key: str, text: str) -> Any:
    try:
        if len(text) > VALUE_MAX:
            raise ValueError(f"more than {VALUE_MAX} characters")
        value = json.loads(text)
        convert.to_json(value).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal("bad_request", f"{key[:64]}: its value is not JSON: {error}") from error
    if value is None or isinstance(value, dict):
        raise Refusal("bad_request", f"{key[:64]}: no key has null or an object; list it in remove to leave it to its default")
    return value


def _refuse_overridden(wanted: Mapping[str, Any], settings: Iterable[schemas.Setting]) -> None:
    for row in settings:
        if row.key in wanted and (row.origin.startswith("NYX_") or row.origin == "flag"):
            raise Refusal("overridden", f"{row.key} is set by {row.origin}, which wins over every file")


def _entry(entry: schemas.ConfigVersion) -> pb.HistoryEntry:
    return pb.HistoryEntry(version=entry.config, time=entry.time, origin=entry.origin, changes=convert.changes(entry.changes))
