"""The API as a part of the control process: loaded when it is needed, and no reason for anything else to fail."""

import asyncio
import logging
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
    """Serves what the configuration asks for. `problem` says why it does not, where it does not."""

    def __init__(self, config: Config, service: Service, pages: Pages, watch: Watch) -> None:
        self._config = config
        self._service = service
        self._pages = pages
        self._watch = watch
        self._grpc: Grpc | None = None
        self._loading = asyncio.Lock()
        self.problem: str | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as parts:
                if self._config.api.enabled:
                    parts.create_task(Front(self._config.api_socket, self._local).run())
                if self._config.api.listen:
                    parts.create_task(self._remote(self._config.api.listen))
        finally:
            if self._grpc:
                await self._grpc.stop()

    async def _local(self, path: Path) -> None:
        await (await self._loaded()).local(path)

    async def _remote(self, listen: tuple[str, int]) -> None:
        grpc = await self._loaded()
        while True:
            try:
                await grpc.remote()
            except (NyxError, RuntimeError) as error:
                self._report(f"api.listen: {address_text(listen)}: {error}; the API is not served there until that is mended")
                await asyncio.sleep(RETRY)
                continue
            self.problem = None
            return

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            _log.error("%s", problem)
        self.problem = problem

    async def _loaded(self) -> "Grpc":
        async with self._loading:
            if self._grpc is None:
                made = await asyncio.to_thread(_load)
                self._grpc = made(self._config, self._service, self._pages, self._watch)
            return self._grpc


def _load() -> "type[Grpc]":
    from control.api.server import Grpc  # takes longer to import than the control process to start

    return Grpc
