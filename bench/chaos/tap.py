"""A tap on the loopback interface that looks for the one thing no crash may cause: two packets under one key and one number.

It sees every packet that arrives at a node of a test network, and learns each session's mask key out of the nodes' own memory,
again and again while they run; so it can take the mask off a header and read the packet number. Numbers of one CID, which names
one session, one direction and one generation of keys, must all differ. Equal numbers over equal bytes are one packet seen twice.

Wants the right to capture and to read the nodes' memory: root. Source: docs/protocol.md, "Link packets".
"""

import ctypes
import multiprocessing
import re
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from nyx.columns import ALIGN
from nyx.link.session import SESSION, SESSION_HELD
from nyx.wire.geometry import (
    CID_SIZE,
    LINK_PAYLOAD_SIZE,
    MASK_START,
    PACKET_LENGTH,
    PACKET_NUMBER,
    PACKET_SIZE,
    SAMPLE,
    SAMPLE_SIZE,
)

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

_ROWS: Final = 1024  # session rows of a worker that are looked at: the lowest free one is always taken first
_HEAD: Final = SAMPLE + SAMPLE_SIZE  # bytes kept of a packet, from its start
_TAIL: Final = 16  # and from its end: what makes two packets of one number different
_CHUNK: Final = 1 << 15  # packets between two rounds of sorting
_LOOK: Final = 0.5  # seconds between two looks for keys
_ETH_P_IP: Final = 0x0800
_IP_UDP: Final = 28  # bytes before the packet, of both headers
_OFFLOAD: Final = 1 << 16
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_OUTGOING: Final = 4
_MAP: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*/memfd:nyx-worker-\d+")


@dataclass
class Report:
    """What the tap saw."""

    packets: int = 0
    with_key: int = 0  # packets whose session's mask key was found
    sessions: int = 0  # directions of sessions among those
    answers: int = 0  # of those: handshake answers, the first packet to a CID, which are masked otherwise
    odd: int = 0  # more packets of a session that do not unmask: the key was wrong
    doubles: int = 0  # the same packet twice
    repeats: int = 0  # the same number with other bytes: must be 0
    missed: int = 0  # packets that the capture had no room for


# ---------------------------------------------------------------- SipHash of many samples


def _rotate(x: U64, n: int) -> U64:
    return (x << np.uint64(n)) | (x >> np.uint64(64 - n))


def _rounds(v: list[U64], count: int) -> None:
    for _ in range(count):
        v[0] = v[0] + v[1]
        v[2] = v[2] + v[3]
        v[1] = _rotate(v[1], 13) ^ v[0]
        v[3] = _rotate(v[3], 16) ^ v[2]
        v[0] = _rotate(v[0], 32) + v[3]
        v[2] = v[2] + v[1]
        v[3] = _rotate(v[3], 21) ^ v[0]
        v[1] = _rotate(v[1], 17) ^ v[2]
        v[2] = _rotate(v[2], 32)


def siphash(key: bytes, samples: Bytes) -> U64:
    """SipHash-2-4 of each row of 16 bytes."""
    words = np.ascontiguousarray(samples).view("<u8").reshape(-1, 2)
    k = np.frombuffer(key, "<u8")
    seeds = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v = [np.full(len(words), int(k[i & 1]) ^ seed, np.uint64) for i, seed in enumerate(seeds)]
    for m in (words[:, 0], words[:, 1], np.uint64(SAMPLE_SIZE << 56)):
        v[3] = v[3] ^ m
        _rounds(v, 2)
        v[0] = v[0] ^ m
    v[2] = v[2] ^ np.uint64(0xFF)
    _rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def unmask(key: bytes, kept: Bytes) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Packet numbers (low 32 bits) of packets of one session, and which have the length that every packet has."""
    header = np.ascontiguousarray(kept[:, MASK_START : MASK_START + 8]).view("<u8").reshape(-1)
    clear = (header ^ siphash(key, kept[:, SAMPLE : SAMPLE + SAMPLE_SIZE])).view(np.uint8).reshape(-1, 8)
    at, length = PACKET_NUMBER - MASK_START, PACKET_LENGTH - MASK_START
    numbers = np.ascontiguousarray(clear[:, at : at + 4]).view(">u4").reshape(-1).astype(np.uint32)
    lengths = np.ascontiguousarray(clear[:, length : length + 2]).view(">u2").reshape(-1)
    return numbers, lengths == LINK_PAYLOAD_SIZE


# ---------------------------------------------------------------- keys out of the nodes' memory


class Keys:
    """Mask keys by CID, from the columns that supervisors (which never die here) have mapped. Raises PermissionError."""

    def __init__(self, supervisors: Sequence[int]) -> None:
        self.found: dict[bytes, bytes] = {}
        self._places: list[tuple[Any, int]] = []
        for pid in supervisors:
            memory = Path(f"/proc/{pid}/mem").open("rb", buffering=0)  # noqa: SIM115 (open as long as we run)
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if match := _MAP.match(line):
                    self._places.append((memory, int(match[1], 16) + ALIGN))  # "sessions" is a worker's first column
        self.look()

    def look(self) -> None:
        """Learn the keys of sessions that are new."""
        for memory, at in self._places:
            memory.seek(at)
            try:
                rows = np.frombuffer(memory.read(_ROWS * SESSION.itemsize), SESSION)
            except OSError:
                continue  # the node has been stopped
            for row in rows[rows["state"] > SESSION_HELD]:
                self.found[row["local_cid"].tobytes()] = row["receive_mask"].tobytes()
                self.found[row["peer_cid"].tobytes()] = row["send_mask"].tobytes()


# ---------------------------------------------------------------- capture


def _filter(first: int, last: int) -> bytes:
    """Classic BPF: UDP over IPv4 to one of these ports, on its way in."""
    drop = 8
    program = [
        (0x28, 0, 0, 0xFFFFF000 + 4),  # the packet's type: a loopback packet passes twice
        (0x15, drop - 2, 0, _OUTGOING),
        (0x30, 0, 0, 9),
        (0x15, 0, drop - 4, socket.IPPROTO_UDP),
        (0x28, 0, 0, 22),
        (0x35, 0, drop - 6, first),
        (0x25, drop - 7, 0, last),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in program)


def open_capture(ports: range) -> socket.socket:
    """A socket that gives what arrives on these ports. Raises PermissionError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    code = ctypes.create_string_buffer(_filter(ports.start, ports.stop - 1))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(code)))
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 512 << 20)
    sock.bind(("lo", _ETH_P_IP))
    return sock


class Tap:
    """Packets in, and at the end how many numbers came twice."""

    def __init__(self, keys: Keys) -> None:
        self.report = Report()
        self._keys = keys
        self._kept = np.zeros((_CHUNK + _OFFLOAD // PACKET_SIZE, _HEAD + _TAIL), np.uint8)
        self._n = 0
        self._unknown: dict[bytes, list[Bytes]] = {}
        self._odd: Counter[bytes] = Counter()
        self._numbers: dict[bytes, list[U64]] = {}  # by CID: number and a digest of the packet, in one word

    def take(self, data: Bytes) -> None:
        """The UDP payload of one captured packet: several of ours where the kernel segments late."""
        count = len(data) // PACKET_SIZE
        packets = data[: count * PACKET_SIZE].reshape(count, PACKET_SIZE)
        self._kept[self._n : self._n + count, :_HEAD] = packets[:, :_HEAD]
        self._kept[self._n : self._n + count, _HEAD:] = packets[:, -_TAIL:]
        self._n += count
        self.report.packets += count
        if self._n >= _CHUNK:
            self.sort()

    def sort(self) -> None:
        """Put what was kept to its session, unmasked where the key is known."""
        kept, self._n = self._kept[: self._n].copy(), 0
        if not len(kept):
            return
        cids = np.ascontiguousarray(kept[:, :8]).view(np.uint64).reshape(-1)
        order = np.argsort(cids, kind="stable")
        for part in np.split(kept[order], np.flatnonzero(np.diff(cids[order])) + 1):
            self._file(part[0, :CID_SIZE].tobytes(), part)

    def _file(self, cid: bytes, part: Bytes) -> None:
        key = self._keys.found.get(cid)
        if key is None:
            self._unknown.setdefault(cid, []).append(part)
            return
        numbers, right = unmask(key, part)
        self._odd[cid] += int((~right).sum())
        digest = siphash(bytes(16), part[right, -_TAIL:]) >> np.uint64(32)
        self._numbers.setdefault(cid, []).append(numbers[right].astype(np.uint64) << np.uint64(32) | digest)

    def finish(self) -> Report:
        """Sort the rest, and compare."""
        self.sort()
        self._keys.look()
        waiting, self._unknown = self._unknown, {}
        for cid, parts in waiting.items():
            self._file(cid, np.concatenate(parts))
        for found in self._numbers.values():
            words = np.sort(np.concatenate(found))
            self.report.with_key += len(words)
            same = words[1:] >> np.uint64(32) == words[:-1] >> np.uint64(32)
            alike = words[1:] == words[:-1]
            self.report.doubles += int((same & alike).sum())
            self.report.repeats += int((same & ~alike).sum())
        self.report.sessions = len(self._numbers)
        self.report.answers = sum(count > 0 for count in self._odd.values())
        self.report.odd = sum(self._odd.values()) - self.report.answers
        return self.report


def _run(sock: socket.socket, tap: Tap, keys: Keys, control: Connection) -> None:
    """The tap's process: capture until told to stop."""
    buffer = np.zeros(_OFFLOAD, np.uint8)
    view = memoryview(buffer.data)
    due = 0.0
    while not control.poll():
        if select.select([sock], [], [], 0.05)[0]:
            for _ in range(256):
                try:
                    size = sock.recv_into(view, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                tap.take(buffer[_IP_UDP:size])
        if time.monotonic() >= due:
            keys.look()
            due = time.monotonic() + _LOOK
    report = tap.finish()
    report.missed = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
    control.send(asdict(report))


class RunningTap:
    """A tap in a process of its own."""

    def __init__(self, ports: range, supervisors: Sequence[int]) -> None:
        """Begin to capture. Raises PermissionError."""
        with open_capture(ports) as sock:
            keys = Keys(supervisors)
            context = multiprocessing.get_context("fork")
            self._ours, theirs = context.Pipe()
            self._process = context.Process(target=_run, args=(sock, Tap(keys), keys, theirs), daemon=True)
            self._process.start()

    def stop(self) -> Report:
        """End the capture; what it saw."""
        self._ours.send("stop")
        report = Report(**self._ours.recv())
        self._process.join()
        return report

    def abandon(self) -> None:
        """End it without a report, if it runs."""
        self._process.kill()
        self._process.join()

    @classmethod
    def start(cls, ports: range, supervisors: Sequence[int]) -> Self | None:
        """A running tap, or None without the right to capture."""
        try:
            return cls(ports, supervisors)
        except PermissionError:
            return None
