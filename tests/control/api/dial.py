"""How tests reach the API of a control process, and read its refusals."""

import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from control.api.generated import nyx_v1_pb2 as pb
from tests.control.nodes import CONFIG

TIME = 30


def api_of(running):
    path = running.socket.parent / "api.sock"
    until = time.monotonic() + TIME
    while not path.is_socket():
        assert time.monotonic() < until, "there is no api.sock"
        time.sleep(0.01)
    return path


@contextlib.contextmanager
def dialled(running):
    with grpc.insecure_channel(f"unix:{api_of(running)}") as channel:
        yield channel


@contextlib.contextmanager
def failing(code, status):
    with pytest.raises(grpc.RpcError) as found:
        yield found
    trailing: Any = found.value.trailing_metadata()
    assert (found.value.code(), dict(trailing)["nyx-error-code"]) == (status, code)
    told = pb.Error.FromString(dict(trailing)["nyx-error-bin"])
    assert (told.code, bool(told.advice)) == (code, True)


def descriptors(running):
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def tcp(port, **keys):
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return CONFIG + f'[api]\nlisten = "127.0.0.1:{port}"\n{lines}'


def private(path, data):
    path.touch(0o600)
    path.write_bytes(data)
    return path
