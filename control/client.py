"""Asking a node over its admin socket, without asyncio: what nyxctl and the test network do."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from control import wire
from nyx.errors import NyxError

TIMEOUT: Final = 10.0  # seconds for an answer


class ClientError(NyxError):
    """A node that does not answer with a document; `code` is its refusal's, or unreachable, denied, timeout."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def ask(path: Path, op: str, args: Mapping[str, Any] | None = None, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The document that the node at this socket answers. Raises ClientError."""
    try:
        return wire.parse_answer(_exchange(path, wire.request(op, dict(args or {})), time.monotonic() + timeout))
    except wire.Refusal as error:
        raise ClientError(error.code, str(error)) from error
    except PermissionError as error:
        raise ClientError("denied", f"{path}: only the node's own user and root may speak to it") from error
    except TimeoutError as error:
        raise ClientError("timeout", f"the node at {path} did not answer within {timeout:g} s") from error
    except OSError as error:
        raise ClientError("unreachable", f"no node answers at {path} ({error.strerror or error}); is nyxd running?") from error


def _exchange(path: Path, request: bytes, until: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_left(until))
        connection.connect(str(path))
        connection.sendall(request)
        found = bytearray()
        while not found.endswith(b"\n"):
            connection.settimeout(_left(until))
            part = connection.recv(1 << 16)
            if not part or len(found) > wire.DOCUMENT_MAX:
                raise ConnectionError("the connection ended in the middle of an answer")
            found += part
        return bytes(found)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
