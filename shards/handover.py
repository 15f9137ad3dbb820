"""A worker's open descriptors, from the keeper that holds them to the keeper that comes next, under the same numbers.

Roles. A keeper has one end of a SOCK_SEQPACKET pair, the supervisor the other, made anew for each keeper:

    supervisor -> keeper   RESTART    end the worker at its next rest; another life follows at once
                           DRAIN      let the worker take nothing new, in this and every further life
                           HAND_OVER  end the worker at its next rest, send its descriptors, and end
    keeper -> supervisor   messages of numbers (JSON) with the descriptors (SCM_RIGHTS), then END

The supervisor forks the next keeper, which puts each descriptor where it was: columns name sockets by number. What a keeper got
from the supervisor (the UDP socket, wake-ups) has the same number in both, so nothing stands in the way.
Source: Linux unix(7) "SCM_RIGHTS".
"""

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Final

from shards.process import open_descriptors

RESTART: Final = b"restart"
DRAIN: Final = b"drain"
HAND_OVER: Final = b"hand over"
END: Final = b"end"

REST: Final = 2.0  # seconds that a worker may take to finish what it is opening
PATIENCE: Final = REST + 4.0  # seconds for all of a hand-over
_A_MESSAGE: Final = 200  # descriptors; the kernel takes 253
_BYTES: Final = 4096  # a message of 200 numbers


def make_pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the keeper's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    theirs.settimeout(PATIENCE)
    return ours, theirs


def send(end: socket.socket, descriptors: Iterable[int]) -> None:
    """Send them all, then END."""
    numbers = sorted(descriptors)
    for at in range(0, len(numbers), _A_MESSAGE):
        part = numbers[at : at + _A_MESSAGE]
        socket.send_fds(end, [json.dumps(part).encode()], part)
    end.send(END)


def receive(end: socket.socket) -> dict[int, int]:
    """Number there -> number here, until END or the other end is gone. What came is the caller's to close.

    Where the system has no room for all of a message's descriptors, it delivers the first ones: the others are lost.
    """
    found: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(end, _BYTES, _A_MESSAGE)
            if message in (END, b""):
                break
            found |= dict(zip(json.loads(message), descriptors, strict=False))
    return found


def place(received: Mapping[int, int], own: int) -> int:
    """Put descriptors where they were; `own`, which may stand in the way, moves. Returns its new number.

    Only in a fresh process whose other descriptors are those that both keepers share. One number more than these have is
    enough: a table that is nearly full goes over whole.
    """
    source = {target: fd for target, fd in received.items() if target != fd}
    kept = _move(own, _spare(received)) if own in received else own
    heirs = {fd: target for target, fd in source.items()}
    for target in [target for target in source if target not in heirs]:
        _follow(source, target)
    while source:  # rings: each stands where another belongs
        target = next(iter(source))
        source[heirs[target]] = _move(target, _spare(received))
        _follow(source, target)
    return kept


def _follow(source: dict[int, int], target: int) -> None:
    """Fill a free place, then the place that became free by that, and so on."""
    while target in source:
        fd = source.pop(target)
        _move(fd, target)
        target = fd


def _move(fd: int, target: int) -> int:
    os.dup2(fd, target, inheritable=False)
    os.close(fd)
    return target


def _spare(wanted: Mapping[int, int]) -> int:
    """A number that is free and nobody's place."""
    taken = open_descriptors() | set(wanted)
    return next(number for number in itertools.count() if number not in taken)
