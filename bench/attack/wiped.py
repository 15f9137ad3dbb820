"""Keys of closed circuits and ended links, looked for in all memory of all processes of a test network.

The secrets are those of the locked columns: layer keys and session keys, read out of every worker while circuits stand. Then
every circuit is replaced (another number of hops), and a relay ends, so that its links end too. Seconds later each page that any
process of any node holds is searched for the first 16 bytes of each key that no column holds any more. Pages that are not there
are not touched. Wants nodes that may be read (`node.inspect`), or root. Source: docs/threat-model.md, "Client machine".
"""

import os
import re
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from bench.chaos.look import Member, members, processes
from bench.network import Network, nyxctl
from bench.stream import connect, source
from nyx.columns import ALIGN, Column, offsets
from nyx.config import load
from nyx.link.session import SESSION
from nyx.onion.ratchet import CHAIN_KEYS, HOP_KEYS
from nyx.wire.geometry import LAYER_KEY_AEGIS, LAYER_KEY_MAX, SEED_SIZE
from shards.worker import worker_columns

NEEDLE: Final = 16  # bytes of a key that are looked for
AFTER: Final = 5.0  # seconds between the end of a key and the search
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PRESENT: Final = np.uint64(1 << 63 | 1 << 62)  # in memory, or in swap
_MAP: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r\S+) \S+ \S+ \S+ *(.*)$", re.MULTILINE)
_COLUMNS: Final = re.compile(r"^([0-9a-f]+)-\S+ \S+ 0+ \S+ \S+ */memfd:nyx-worker-(\d+)", re.MULTILINE)  # where a memory begins
_KEYS: Final = ("receive_key", "send_key", "receive_mask", "send_mask")


@dataclass
class Found:
    """Keys by kind that ended, and where copies of them stood: role of the process and kind of memory."""

    ended: dict[str, int] = field(default_factory=dict)
    copies: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by kind of key, role of the process, mapping
    searched: int = 0  # bytes


def use(network: Network, circuits: int = 12) -> None:
    """Let so many circuits carry a stream. Raises OSError."""
    pid, port = source()
    try:
        for number in range(circuits):
            with connect(port, network.proxy_port, user=f"wiped {number}") as stream:
                stream.sendall(struct.pack(">Q", NEEDLE))
                stream.recv(NEEDLE, socket.MSG_WAITALL)
    finally:
        os.kill(pid, signal.SIGKILL)


def search(network: Network, *, wait: float = 60.0) -> Found:
    """End every circuit and one relay's links, then look for what their keys left. Raises OSError, TimeoutError."""
    nodes = members(network)
    before = _held(network, nodes)
    _end_circuits(network, nodes, wait)
    gone = _end_relay(network, nodes)
    left = [node for node in nodes if node.alias != gone]
    _until_links_end(network, left, gone, wait)
    time.sleep(AFTER)
    after = _held(network, left)
    found = Found()
    needles: dict[bytes, str] = {}
    for kind, keys in before.items():
        ended = keys - after[kind]
        found.ended[kind] = len(ended)
        needles |= dict.fromkeys(ended, kind)
    for role, pid in processes(left):
        _look_through(role, pid, needles, found)
    return found


def _held(network: Network, nodes: Sequence[Member]) -> dict[str, set[bytes]]:
    """What the columns of all workers hold now: layer keys and session keys, the first bytes of each."""
    files = {str(node["alias"]): Path(node["config"]) for node in network.nodes()}
    found: dict[str, set[bytes]] = {"layer keys": set(), "session keys": set()}
    for node in nodes:
        columns = worker_columns(load(files[node.alias]))
        for role, pid in processes([node]):
            if role != "worker":
                continue
            maps = Path(f"/proc/{pid}/maps").read_text()
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                for base, _ in dict.fromkeys(_COLUMNS.findall(maps)):
                    found["layer keys"] |= _layer_keys(memory, int(base, 16), columns)
                    found["session keys"] |= _session_keys(memory, int(base, 16), columns)
    return found


def _column(memory: BinaryIO, base: int, columns: Sequence[Column], name: str) -> bytes:
    starts, _ = offsets(columns)
    at, column = next((start, c) for start, c in zip(starts, columns, strict=True) if c.name == name)
    memory.seek(base + ALIGN + at)
    return _whole(memory, column.length * column.dtype.itemsize)


def _whole(memory: BinaryIO, size: int) -> bytes:
    parts, left = [], size
    while left and (part := memory.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _layer_keys(memory: BinaryIO, base: int, columns: Sequence[Column]) -> set[bytes]:
    """Of both epochs each of the five round keys of an AEGIS layer by itself, copies of parts count too; seeds, circuit keys."""
    raw = np.frombuffer(_column(memory, base, columns, "layer_keys"), np.uint8).reshape(-1, HOP_KEYS)
    used = raw[raw.any(axis=1)]
    keys = [at for start in (0, LAYER_KEY_MAX) for at in range(start, start + LAYER_KEY_AEGIS, NEEDLE)]
    chain = [*keys, *range(2 * LAYER_KEY_MAX, CHAIN_KEYS, SEED_SIZE)]
    places = [*chain, *(CHAIN_KEYS + at for at in chain), *range(2 * CHAIN_KEYS, HOP_KEYS, SEED_SIZE)]
    parts = {row[at : at + NEEDLE].tobytes() for row in used for at in places}
    return {part for part in parts if any(part)}


def _session_keys(memory: BinaryIO, base: int, columns: Sequence[Column]) -> set[bytes]:
    rows = np.frombuffer(_column(memory, base, columns, "sessions"), SESSION)
    return {row[name][:NEEDLE].tobytes() for row in rows for name in _KEYS if row[name][:NEEDLE].any()}


# ---------------------------------------------------------------- endings


def _end_circuits(network: Network, nodes: Sequence[Member], wait: float) -> None:
    """Circuits that the configuration would not build again close when no stream uses them."""
    client = next(node for node in nodes if node.role == "client")
    old = max(len(circuit["hops"]) for circuit in network.ask("circuits")["circuits"])
    nyxctl("--socket", client.control, "config", "set", "path.hops", str(old - 1))
    until = time.monotonic() + wait
    while any(len(circuit["hops"]) == old for circuit in network.ask("circuits")["circuits"]):
        if time.monotonic() > until:
            raise TimeoutError("the old circuits do not end")
        time.sleep(0.2)


def _end_relay(network: Network, nodes: Sequence[Member]) -> str:
    """Stop a relay that the client does not need: its name."""
    peers = {peer["alias"] for peer in network.ask("peers")["peers"]}
    relay = next(node for node in reversed(nodes) if node.role == "relay" and node.alias not in peers)
    os.kill(relay.pid, signal.SIGTERM)
    return relay.alias


def _until_links_end(network: Network, nodes: Sequence[Member], gone: str, wait: float) -> None:
    until = time.monotonic() + wait
    while any(peer["alias"] == gone for node in nodes for peer in network.ask("peers", alias=node.alias)["peers"]):
        if time.monotonic() > until:
            raise TimeoutError("the links of a relay that ended do not end")
        time.sleep(0.2)


# ---------------------------------------------------------------- the search


def _look_through(role: str, pid: int, needles: dict[bytes, str], found: Found) -> None:
    heads = np.unique(np.frombuffer(b"".join(needle[:8] for needle in needles), np.uint64))
    for mapping, block in _pages(pid):
        found.searched += len(block)
        words = np.frombuffer(block[: len(block) // 8 * 8], np.uint64)
        for word in np.flatnonzero(np.isin(words, heads)).tolist():
            kind = needles.get(block[8 * word : 8 * word + NEEDLE])
            if kind:
                found.copies[kind, role, mapping] += 1


def _pages(pid: int) -> Iterator[tuple[str, bytes]]:
    """Every run of pages that the process holds, at most 16 MiB at a time, and the name of what is mapped."""
    with (
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
        Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap,
    ):
        for first, last, _, name in _MAP.findall(Path(f"/proc/{pid}/maps").read_text()):
            if name.startswith(("[vvar", "[vsyscall")):
                continue
            start, count = int(first, 16), (int(last, 16) - int(first, 16)) // _PAGE
            pagemap.seek(start // _PAGE * 8)
            present = np.frombuffer(_whole(pagemap, 8 * count), np.uint64) & _PRESENT != 0
            for begin, end in _runs(present):
                memory.seek(start + begin * _PAGE)
                yield name or "anonymous", _whole(memory, (end - begin) * _PAGE)


def _runs(marks: NDArray[np.bool_], most: int = 4096) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marks, [False])).astype(np.int8)))
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for at in range(begin, end, most):
            yield at, min(at + most, end)


def summary(found: Found) -> dict[str, Any]:
    """For a table: keys that ended, copies, MiB searched."""
    return {
        "ended": found.ended,
        "copies": {", ".join(place): n for place, n in found.copies.items()},
        "searched_mib": found.searched >> 20,
    }
