"""The admin socket's server as it ends: with a question under way, nothing is logged as a failure."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import control.server
from control import wire


def test_a_question_under_way_when_the_process_ends_is_no_failure(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "control.sock"

    async def scene() -> bytes:
        asked, listener = asyncio.Event(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()

        async def handler(_op: str, _args: Any) -> Any:
            asked.set()
            await asyncio.sleep(3600)

        running = asyncio.create_task(control.server.Server(listener, handler).run())
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(wire.request("status", {}))
        await asked.wait()
        running.cancel()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(scene()) == b""
    assert [record.getMessage() for record in caplog.records] == []
