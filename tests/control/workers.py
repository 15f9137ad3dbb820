"""Stand-ins of workers for the tests of this room: they answer over a real channel what they are told to."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable

from nyx.wire import admin

NODE = "ab" * 32


def circuit(number=1, worker=0, role="client", **changes):
    hops = [{"node": f"{i:02x}" * 32, "alias": f"relay-{i}" if i else None} for i in range(3)] if role == "client" else None
    values = {
        "id": number, "worker": worker, "role": role, "state": "ready", "hops": hops, "age": 1.5,
        "streams": 2 if role != "relay" else None, "cells_in": 10, "cells_out": 20,
    }  # fmt: skip
    return values | changes


def stream(number=1, worker=0, target="secret.example:80", **changes):
    values = {
        "id": number, "worker": worker, "circuit": 1, "role": "client", "state": "open", "target": target, "age": 0.25,
        "bytes_in": 2048, "bytes_out": 10, "reason": None,
    }  # fmt: skip
    return values | changes


def peer(worker=0, **changes):
    values = {
        "node": NODE, "alias": "relay-1", "worker": worker, "initiator": True, "state": "up", "sessions": 4,
        "suite": "aegis128l", "rtt": 0.4, "packets_in": 3, "packets_out": 4,
    }  # fmt: skip
    return values | changes


def status(worker=0, stage="ready", **changes):
    values = {
        "worker": worker, "pid": os.getpid(), "stage": stage, "uptime": 12.5, "links": 1, "circuits": 3, "circuits_ready": 2,
        "memory_used": 90 << 20, "memory_cap": 256 << 20, "streams": 1, "warnings": [],
    }  # fmt: skip
    return values | changes


def answers(worker=0, count=1, stage="ready"):
    """What an ordinary worker answers to each operation."""
    return {
        admin.Op.PING: {"worker": worker, "pid": os.getpid()},
        admin.Op.STATUS: status(worker, stage),
        admin.Op.CIRCUITS: ("circuits", [circuit(i, worker) for i in range(count)]),
        admin.Op.STREAMS: ("streams", [stream(i, worker) for i in range(count)]),
        admin.Op.PEERS: ("peers", [peer(worker) for _ in range(count)]),
        admin.Op.CLOSE_CIRCUIT: {"closed": True},
    }


class Worker:
    """Answers in a thread of its own until its channel is closed; a text instead of data is a refusal, None is silence."""

    def __init__(self, told, before=None):
        self.far, self.near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.told = told
        self.before: Callable[[admin.Request], list[bytes]] = before or (lambda _request: [])
        self.asked = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while message := self.near.recv(1 << 17):
            request = admin.decode_request(message)
            self.asked.append(request)
            try:
                for message in [*self.before(request), *self._answer(request)]:
                    self.near.send(message)
            except BrokenPipeError:  # who asked is gone, and so is the other end
                return

    def _answer(self, request):
        match self.told.get(request.op):
            case None:
                return []
            case str(text):
                return [admin.Answer(request.id, error=text).encode()]
            case (name, rows):
                return admin.answer_rows(request.id, name, rows)
            case data:
                return [admin.Answer(request.id, data).encode()]

    def close(self):
        for end in (self.far, self.near):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.far.close()
        self.near.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
