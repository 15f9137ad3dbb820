"""Packets that come again at a running relay: real sockets, two workers, and workers that are killed meanwhile.

A client of ours builds a circuit and sends cells of padding; each packet is kept as it went over the wire and sent again many
times. All copies carry one CID, so they reach the worker that had the first: whichever socket they come from, and whichever life
of it. Accepted is what any node of the network relayed or delivered meanwhile; nobody else uses the network.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench.attack.peer import KEPT, Ground, Peer, settle
from bench.attack.probes import CHUNK, rows
from bench.chaos.look import Member, counters, processes
from nyx.wire.geometry import CELL_SIZE, PACKET_CELL, PACKET_SIZE
from shards.tables import ROLE_CLIENT

FIRST: Final = 1 << 12  # sequence of our first cell, above what a circuit's own streams have used
KILLS: Final = 6
QUIET: Final = 1.5  # seconds until counters are committed and killed workers have come back


@dataclass
class Found:
    """Cells that arrived the first time, copies sent, cells that went anywhere meanwhile, workers killed, drops by name."""

    arrived: int = 0
    copies: int = 0
    accepted: int = 0
    kills: int = 0
    drops: dict[str, int] = field(default_factory=dict)


def again(ground: Ground, members: list[Member], total: int) -> Found:
    """So many copies to the first relay of a circuit of ours."""
    found, peer, others = Found(), Peer(ground, circuits=1), [Peer(ground) for _ in range(3)]
    if not peer.until(lambda: peer.node.circuits(ROLE_CLIENT), 30):
        raise RuntimeError("no circuit in 30 s")
    row = peer.node.circuits(ROLE_CLIENT)[0]
    entry = ground.snapshot.by_id(peer.node.rows.path(row)[0])
    assert entry is not None
    port = entry.addresses[0][1]
    victim = next(member for member in members if member.alias == entry.alias)
    before = counters(members)
    for number in range(KEPT):
        _send_cell(peer, row, FIRST + number)
    settle(port, most=0)
    time.sleep(QUIET)
    middle = counters(members)
    found.arrived = middle["cells_delivered"] - before["cells_delivered"]
    kept = peer.air.kept[port]
    chunks = max(KILLS + 1, total // CHUNK)
    for chunk in range(chunks):
        if chunk % (chunks // (KILLS + 1)) == 1 and found.kills < KILLS:
            found.kills += _kill(victim, found.kills)
        settle(port)
        block = rows([kept[k] for k in ground.random.integers(0, len(kept), CHUNK)])
        found.copies += others[chunk % len(others)].blast(port, block)
    settle(port, most=0)
    time.sleep(QUIET)
    after = counters(members)
    found.accepted = sum(after[name] - middle[name] for name in ("cells_relayed", "cells_delivered"))
    found.drops = {n: after[n] - middle[n] for n in after if n.startswith("dropped") and after[n] > middle[n]}
    for one in (peer, *others):
        one.close()
    return found


def _send_cell(peer: Peer, row: int, sequence: int) -> None:
    """One cell of padding, in a packet of its own."""
    node = peer.node
    slots = node.pool.take(1)
    cell = sequence.to_bytes(8, "big").ljust(CELL_SIZE, b"\0")
    node.pool.packets.reshape(-1, PACKET_SIZE)[slots[0], PACKET_CELL : PACKET_CELL + CELL_SIZE] = np.frombuffer(cell, np.uint8)
    connection = int(node.columns["circuits"][row]["connection"]) - 1
    now = time.monotonic_ns()
    node.batch.wrap(slots, np.array([connection], np.int64), 1, now)
    node.batch.outbox.flush(now)


def _kill(victim: Member, number: int) -> int:
    """Kill one of the relay's workers, in turn."""
    workers = sorted(pid for role, pid in processes([victim]) if role == "worker")
    with suppress(ProcessLookupError, IndexError):
        os.kill(workers[number % len(workers)], signal.SIGKILL)
        return 1
    return 0
