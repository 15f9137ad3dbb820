"""Which worker a packet belongs to: the kernel asks the same question of its CID as we do.

Place on a packet's way: before everything; a program in the socket group picks the worker's socket by the first word of the
payload. shard = (secret odd multiplier x word mod 2^32) >> 26 names one of 64 virtual shards, worker = shard mod workers.
The receiver chooses its CIDs so that they name the worker it wants; strangers' packets spread. A segmented burst is steered
as one packet by its first CID, and another program's sender may mix: the receiving worker checks every packet.

The group never changes while the node runs: closing a member moves the last one into its place (the supervisor holds all),
and the number of workers is fixed for a boot.
Source: docs/protocol.md, "Steering"; Linux bpf(2), socket(7) SO_ATTACH_REUSEPORT_CBPF.
"""

import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from nyx.errors import InternalError
from nyx.kernel import inline
from nyx.wire.geometry import CID_SIZE, SHARD_SHIFT, VIRTUAL_SHARDS

Entropy = Callable[[int], bytes]

_WORD: Final = 0xFFFFFFFF
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_LOAD_WORD: Final = 0x20  # A = the big-endian word at payload[k]; out of range returns 0
_MULTIPLY: Final = 0x24  # A *= k
_SHIFT_RIGHT: Final = 0x74  # A >>= k
_MODULO: Final = 0x94  # A %= k
_RETURN: Final = 0x16  # the socket with index A
_TRIES: Final = 10_000  # with 4 workers a random CID fails 10,000 times with probability 10^-1249

assert VIRTUAL_SHARDS == 1 << (32 - SHARD_SHIFT)


def draw_multiplier(entropy: Entropy) -> int:
    """A node's secret multiplier of this boot: 32 bits, odd."""
    return int.from_bytes(entropy(4), "big") | 1


def shard_of(cid: bytes, multiplier: int) -> int:
    """The virtual shard that this CID names."""
    return (int.from_bytes(cid[:4], "big") * multiplier & _WORD) >> SHARD_SHIFT


def worker_of(cid: bytes, multiplier: int, workers: int) -> int:
    """The worker to whom this CID brings a packet."""
    return shard_of(cid, multiplier) % workers


def choose_cid(worker: int, workers: int, multiplier: int, entropy: Entropy) -> bytes:
    """A random CID that brings packets to this worker."""
    for _ in range(_TRIES):
        cid = entropy(CID_SIZE)
        if worker_of(cid, multiplier, workers) == worker:
            return cid
    raise InternalError("the source of entropy repeats itself")


@inline
def worker_at(packets: Any, at: int, multiplier: int, workers: int) -> Any:
    """Kernel helper: the worker that the CID at packets[at] names."""
    high = np.int64(packets[at]) << 8 | np.int64(packets[at + 1])
    low = np.int64(packets[at + 2]) << 8 | np.int64(packets[at + 3])
    m = np.int64(multiplier)
    product = (((m * high) & 0xFFFF) << 16) + m * low  # in halves: no overflow of 64 signed bits
    return ((product & 0xFFFFFFFF) >> SHARD_SHIFT) % np.int64(workers)


def attach_program(member: socket.socket, multiplier: int, workers: int) -> None:
    """Give the group that `member` belongs to its program; it replaces an older one at once. A lone socket needs none."""
    if workers == 1:
        return
    steps = [(_LOAD_WORD, 0), (_MULTIPLY, multiplier), (_SHIFT_RIGHT, SHARD_SHIFT), (_MODULO, workers), (_RETURN, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", op, 0, 0, k) for op, k in steps))
    member.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", len(steps), ctypes.addressof(code)))
