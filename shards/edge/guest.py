"""One application that speaks the SDK's protocol: its socket, the memory it shares with this worker, and the two wake-ups.

What outlives a worker is in the row of "edge_guests" and in the memory itself; a `Guest` is one life's view of it. The memory is
made and sealed here, so that nobody can cut it short under the mapping, and everything written into it by the application is
looked at only through `look` and checked by the callers. Protocol: nyx/wire/sdk.py.
"""

import array
import contextlib
import fcntl
import mmap
import os
import socket
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import address_of
from nyx.wire.sdk import (
    HEADER_LIFE,
    HOST,
    HOST_MAX,
    HOST_SIZE,
    ISOLATED,
    KEY,
    KEY_SIZE,
    PORT,
    STATE,
    VERB,
    Outcome,
    Phase,
    Welcome,
    memory_size,
    slot_at,
    slot_size,
    state_word,
)
from shards.edge import table as edge
from shards.edge.table import memory_inode, socket_inode
from shards.kernels.slots import look, publish

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MADV_DONTDUMP: Final = 16


def make_memory(size: int) -> int:
    """A memfd of that size which nobody can resize."""
    fd = os.memfd_create("nyx-sdk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


class Guest:
    """The application at row `index` of "edge_guests", whose row is filled."""

    def __init__(self, rows: NDArray[Any], index: int) -> None:
        row = rows[index]
        self.index = index
        self.row = row
        self.slots = int(row["slots"])
        self.ring = int(row["ring"])
        self.wake = int(row["wake"]) - 1
        self.bell = int(row["bell"]) - 1
        sock = int(row["sock"]) - 1
        pages = mmap.mmap(int(row["memory"]) - 1, memory_size(self.slots, self.ring))
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=sock) if sock >= 0 else None
        pages.madvise(_MADV_DONTDUMP)
        self._bytes: NDArray[np.uint8] = np.frombuffer(pages, np.uint8)
        self._words: NDArray[np.int64] = self._bytes.view(np.int64)
        self._address = address_of(self._bytes)
        self.bound: NDArray[np.int64] = np.full(self.slots, -1, np.int64)  # stream row of each slot
        self.seen: NDArray[np.int64] = np.zeros(self.slots, np.int64)  # the verb word last dealt with

    @classmethod
    def welcome(cls, rows: NDArray[Any], index: int, sock: socket.socket, slots: int, ring: int) -> tuple[Self, int]:
        """Make the memory and wake-ups of a new application and name them in the row; also the bell's end for the application.

        Raises OSError; then nothing is named and nothing is left open but `sock`.
        """
        opened: list[int] = []
        row = rows[index]
        try:
            opened.append(make_memory(memory_size(slots, ring)))
            opened.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            opened.extend(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            memory, wake, theirs, bell = opened
            row["sock"], row["memory"], row["wake"], row["bell"] = sock.fileno() + 1, memory + 1, wake + 1, bell + 1
            row["sock_inode"], row["memory_inode"] = socket_inode(sock.fileno()), memory_inode(memory)
            row["slots"], row["ring"] = slots, ring
            row["state"] = edge.GUEST_LIVE
            guest = cls(rows, index)
        except OSError:
            row["state"] = edge.FREE
            for fd in opened:
                os.close(fd)
            raise
        sock.detach()
        return guest, theirs

    # ---------------------------------------------------------------- words

    def place(self, slot: int) -> int:
        """Address of a slot."""
        return self._address + slot_at(slot, self.ring)

    def look(self, slot: int, word: int) -> int:
        """One word of a slot."""
        return int(look(self.place(slot) + 8 * word))

    def store(self, slot: int, word: int, value: int) -> None:
        """Store one word of a slot."""
        publish(self.place(slot) + 8 * word, value)

    def tell(self, slot: int, generation: int, phase: Phase, outcome: Outcome = Outcome.OK) -> None:
        """Commit the state of a slot, and say that there is news."""
        self.store(slot, STATE, state_word(generation, phase, outcome))
        self.ring_bell()

    def changed(self) -> list[int]:
        """Slots whose verb is not the one last dealt with."""
        first, step = slot_at(0, self.ring) // 8 + VERB, slot_size(self.ring) // 8
        verbs = self._words[first : first + step * (self.slots - 1) + 1 : step]
        return [int(slot) for slot in np.flatnonzero(verbs != self.seen)]

    def request(self, slot: int) -> tuple[bytes, int, bytes]:
        """Host, port and isolation key that the application wrote, copied once; the host is empty where it cannot be right."""
        size, port, isolated = self.look(slot, HOST_SIZE), self.look(slot, PORT), self.look(slot, ISOLATED)
        at = slot_at(slot, self.ring)
        host = self._bytes[at + HOST : at + HOST + size].tobytes() if 0 < size <= HOST_MAX else b""
        key = self._bytes[at + KEY : at + KEY + KEY_SIZE].tobytes() if isolated else b""
        return host, port, key

    def note_life(self) -> None:
        """Tell that this memory's worker was started again."""
        self._words[HEADER_LIFE] += 1
        self.ring_bell()

    # ---------------------------------------------------------------- messages and wake-ups

    def ring_bell(self) -> None:
        """Wake the application; never waits."""
        with contextlib.suppress(OSError):  # full: it will wake; broken: the socket says so too
            os.write(self.bell, b"\0")

    def send(self, message: bytes) -> bool:
        """Send a message if it can be taken now."""
        try:
            return self.sock is not None and self.sock.send(message, socket.MSG_DONTWAIT) == len(message)
        except OSError:
            return False

    def send_welcome(self, boot: str, worker: int, ready: int, theirs: int) -> bool:
        """Send WELCOME with the descriptors; closes the bell's end that was made for the application."""
        assert self.sock is not None
        message = Welcome(self.slots, self.ring, boot, worker, int(self._words[HEADER_LIFE]), ready).encode()
        fds = array.array("i", [int(self.row["memory"]) - 1, self.wake, theirs])
        try:
            self.sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], socket.MSG_DONTWAIT)
        except OSError:
            return False
        finally:
            os.close(theirs)
        return True

    # ---------------------------------------------------------------- the end

    @property
    def live(self) -> list[int]:
        """Stream rows of its slots."""
        return [int(row) for row in self.bound[self.bound >= 0]]

    def hang_up(self) -> None:
        """Close the socket: nothing new comes; what the application closed properly may still end."""
        if self.sock is not None:
            self.row["state"] = edge.GUEST_GONE
            self.row["sock"] = 0
            self.sock.close()
            self.sock = None

    def close(self) -> None:
        """Let everything go. No row may be bound any more."""
        self.row["state"] = edge.FREE  # before the descriptors' numbers can be others'
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        for fd in (int(self.row["memory"]) - 1, self.wake, self.bell):
            with contextlib.suppress(OSError):
                os.close(fd)
