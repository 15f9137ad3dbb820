"""A question to the node's own control socket: whether the control process serves it, and what it says of the node.

Roles: the supervisor asks, as `nyxctl status` would. It is answered by the control process's loop, which asks every worker's
loop first; so an answer is a sign of life of all of them. One question at a time, and nothing here waits.
"""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Final

_QUESTION: Final = b'{"v":1,"op":"status","args":{}}\n'
_ANSWER_MAX: Final = 1 << 20  # bytes


class Probe:
    """The asker of one control socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._data = b""

    def look(self) -> bytes | None:
        """The answer, once it is there; empty where the connection was closed without one; None: not yet. Asks when needed."""
        try:
            if self._socket is None:
                self._ask()
            return self._take()
        except BlockingIOError:
            return None
        except OSError:
            self.close()
            return None

    def close(self) -> None:
        """Ask no more, or anew."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._data = None, b""

    def _ask(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.connect(str(self._path))
        self._socket.send(_QUESTION)

    def _take(self) -> bytes:
        assert self._socket is not None
        while piece := self._socket.recv(65536):
            self._data += piece
            if piece.endswith(b"\n") or len(self._data) > _ANSWER_MAX:
                break
        answer = self._data
        self.close()
        return answer


def document(answer: bytes) -> dict[str, Any]:
    """What an answer says of the node; empty where it says nothing that is understood."""
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(answer).get("document")
        if isinstance(found, dict):
            return found
    return {}
