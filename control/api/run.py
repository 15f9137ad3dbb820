"""The API as a part of the control process: loaded when it is needed, and no reason for anything else to fail."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from control.api.front import Front
from control.feed.watch import Watch
from control.pages import Pages
from control.service import Service, address_text
from nyx.config import Config
from nyx.errors import NyxError

if TYPE_CHECKING:
    from control.api.server import Grpc

RETRY: Final = 5.0  # seconds until what could not be served is tried again

_log: Final = logging.getLogger(__name__)


class Api:
    """Serves what the configuration asks for, and tries again what it cannot."""

    def __init__(self, config: Config, service: Service, pages: Pages, watch: Watch) -> None:
        self._config = config
        self._service = service
        self._pages = pages
        self._watch = watch
        self._grpc: Grpc | None = None
        self._loading = asyncio.Lock()
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str | None:
        """Why something is not served, or not as its files say now."""
        problems = [*self._problems.values(), self._grpc.problem if self._grpc else None]
        return "; ".join(filter(None, problems)) or None

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as parts:
                if self._config.api.enabled:
                    path = self._config.api_socket
                    parts.create_task(self._kept_up(str(path), Front(path, self._local).run))
                if listen := self._config.api.listen:
                    parts.create_task(self._kept_up(f"api.listen: {address_text(listen)}", self._remote))
        finally:
            if self._grpc:
                await self._grpc.stop()

    async def _kept_up(self, where: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Serve, and begin again a while after that failed."""
        logged = ""
        while True:
            try:
                await serve()
                return
            except (NyxError, OSError, RuntimeError) as error:
                problem = f"{where}: {error}; the API is not served there until that is mended"
            if problem != logged:
                _log.error("%s", problem)
            self._problems[where] = logged = problem
            await asyncio.sleep(RETRY)
            del self._problems[where]  # the next try sets it again

    async def _local(self, path: Path) -> None:
        await (await self._loaded()).local(path)

    async def _remote(self) -> None:
        await (await self._loaded()).remote()

    async def _loaded(self) -> "Grpc":
        async with self._loading:
            if self._grpc is None:
                made = await asyncio.to_thread(_load)
                self._grpc = made(self._config, self._service, self._pages, self._watch)
            return self._grpc


def _load() -> "type[Grpc]":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log goes past ours, and names peers
    from control.api.server import Grpc  # takes longer to import than the control process to start

    return Grpc
