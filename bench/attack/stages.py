"""Hostile packets for every stage that a packet can reach, by a hostile client and a hostile relay with real keys.

Each stage names what it sends, how large its share is, and the counters that must rise when it reaches its victim. Stages
that end a link or a circuit (what a neighbour takes as a violation) cost us a handshake or a build each: their shares are
small. What is sent, and in which order, follows from the run's seed; keys and ids are drawn anew.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bench.attack.peer import Ground, Peer, settle
from bench.attack.probes import junk, rows, with_mac1
from nyx.link.channel import HEADER_FRAMES
from nyx.link.frames import Destroy, Ping, Pong, ReceiveWindow, Settings
from nyx.link.handshake import Initiator
from nyx.link.session import SESSION_LIVE
from nyx.wire.geometry import (
    BUILD_SLOTS,
    CELL_SIZE,
    CID_SIZE,
    FRAMES_SIZE,
    LINK_PAYLOAD_SIZE,
    PACKET_CELL,
    PACKET_CIRCUIT,
    PACKET_LENGTH,
    PACKET_NUMBER,
    PACKET_PATH,
    PACKET_PAYLOAD,
    PACKET_SIZE,
    PACKET_TYPE,
    SESSIONS_PER_LINK,
)
from nyx.wire.packet import KIND_ANSWER, KIND_BUILD, header_byte
from shards.tables import ROLE_CLIENT

CHUNK: Final = 96  # packets between two looks at the victim's socket
CIRCUIT_LIMIT: Final = 5.0  # seconds for the next circuit of our own, after a hop has ended the last one
FEW: Final = 4  # of those that cost a public-key operation each
FRAME_TYPES: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x20, 0x30, 0x31, 0x32, 0x33, 0x34, 0x3F, 0x40, 0x57, 0xFF)


@dataclass
class Hostile:
    """The hostile nodes, what they sent by stage, and what the relay changed in passing.

    `client` and `relay` are the victim's neighbours; `end` builds circuits through the network and speaks to their last hops.
    """

    ground: Ground
    client: Peer
    relay: Peer
    end: Peer
    victim: str
    port: int
    sent: Counter[str] = field(default_factory=Counter)
    mangled: Counter[str] = field(default_factory=Counter)
    links_made: int = 0
    stuck: int = 0  # times the victim did not take what waited in its socket
    recorded: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relay.lie = self.lie
        self._lying = True

    # ------------------------------------------------------------ what both need

    def either(self) -> Peer:
        """One of the two, by the seed."""
        return self.client if self.ground.rng.random() < 0.5 else self.relay

    def session(self, peer: Peer) -> tuple[Any, int]:
        """A link of this peer to the victim, made again if need be, and one of its sessions; (None, -1) when there is none."""
        link = peer.node.links.find(self.ground.node_of(self.victim).id)
        if link is None:
            link = peer.link(self.victim)
            self.links_made += link is not None
        return (link, peer.node.links.choose_session(link)) if link else (None, -1)

    def turn(self) -> None:
        """All hostile nodes do what a node does."""
        for peer in (self.client, self.relay, self.end):
            peer.turn()

    def lie(self, outbox: Any) -> None:
        """The relay changes some of what it passes on for others: cells, and now and then a build or an answer."""
        if not self._lying:
            return
        rng, packets = self.ground.rng, self.relay.node.pool.packets
        for k in range(outbox.n):
            at = int(outbox.slots[k]) * PACKET_SIZE
            header = int(packets[at + PACKET_TYPE])
            data = header >> 3 & 3 == 0
            if header >> 6 or rng.random() > (0.3 if data else 0.01):
                continue
            where = at + PACKET_CELL + rng.randrange(CELL_SIZE)
            packets[where] ^= rng.randrange(1, 256)
            self.mangled["cells" if data else "builds and answers"] += 1

    def sealed(self, peer: Peer, fill: Callable[[Any], None], count: int = CHUNK) -> int:
        """Packets under a valid seal of a link to the victim; `fill` writes them, a row each, from the header on."""
        link, row = self.session(peer)
        if link is None:
            return 0
        pool, outbox = peer.node.pool, peer.node.batch.outbox
        slots = pool.take(min(count, outbox.room))
        view = pool.packets.reshape(-1, PACKET_SIZE)
        block = np.zeros((len(slots), PACKET_SIZE), np.uint8)
        block[:, PACKET_LENGTH : PACKET_LENGTH + 2] = tuple(LINK_PAYLOAD_SIZE.to_bytes(2, "big"))
        fill(block)
        view[slots] = block
        for slot in slots.tolist():
            outbox.add(slot, row)
        self._lying = False
        outbox.flush(time.monotonic_ns())
        self._lying = True
        return len(slots)

    # ------------------------------------------------------------ strangers

    def stranger(self) -> int:
        """Random bytes."""
        return self.client.blast(self.port, junk(self.ground, CHUNK))

    def odd_size(self) -> int:
        """Datagrams that are too short or too long."""
        rng = self.ground.rng
        for _ in range(FEW):
            size = rng.choice((0, 1, 12, 1279, 1281, rng.randrange(1500)))
            self.client.air.socket.sendto(rng.randbytes(size if size != PACKET_SIZE else 1), ("127.0.0.1", self.port))
        return FEW

    def handshake(self) -> int:
        """A right mac1 over random bytes, and over an initiation whose sealed part or key was changed."""
        rng, wall, victim = self.ground.rng, int(time.time()), self.ground.node_of(self.victim).public
        packets = []
        for kind in range(FEW):
            if kind % 2:
                cids = [rng.randbytes(CID_SIZE) for _ in range(SESSIONS_PER_LINK)]
                packet = bytearray(Initiator(victim, None, [1], cids, rng.randbytes, wall).packet)
                packet[rng.randrange(16, 1248)] ^= rng.randrange(1, 256)
            else:
                packet = bytearray(rng.randbytes(PACKET_SIZE))
            packets.append(with_mac1(bytes(packet), victim, wall))
        self.recorded = [*self.recorded[-64:], *packets]
        return self.client.blast(self.port, rows(packets))

    def handshake_again(self) -> int:
        """Recorded initiations."""
        if not self.recorded:
            return 0
        return self.client.blast(self.port, rows([self.ground.rng.choice(self.recorded) for _ in range(CHUNK)]))

    def real_cid(self) -> int:
        """The CID of a live session and junk behind it, which anybody who sees the wire can send."""
        peer = self.either()
        sessions = peer.node.columns["sessions"]
        link, _ = self.session(peer)
        if link is None:
            return 0
        ours = (sessions["state"] >= SESSION_LIVE) & (sessions["link"] == link.row)
        live = sessions[ours]["peer_cid"]
        block = junk(self.ground, CHUNK)
        block[:, :CID_SIZE] = live[self.ground.random.integers(0, len(live), CHUNK)]
        return self.client.blast(self.port, block)

    def replay(self) -> int:
        """Packets that we have sent before, as they were."""
        kept = self.either().air.kept.get(self.port)
        if not kept:
            return 0
        return self.client.blast(self.port, rows([self.ground.rng.choice(kept) for _ in range(CHUNK)]))

    # ------------------------------------------------------------ an authenticated neighbour

    def sealed_junk(self) -> int:
        """Random header and payload under a valid seal."""

        def fill(block: Any) -> None:
            block[:, PACKET_TYPE:PACKET_NUMBER] = self.ground.random.integers(0, 256, (len(block), 4), np.uint8)
            block[:, PACKET_PAYLOAD:] = junk(self.ground, len(block))[:, PACKET_PAYLOAD:]
            block[:, PACKET_PAYLOAD] |= 1  # not the link's own frames: those are a stage of their own

        return self.sealed(self.either(), fill)

    def cells(self) -> int:
        """Well-formed cells of circuits that do not exist."""

        def fill(block: Any) -> None:
            block[:, PACKET_CIRCUIT:] = junk(self.ground, len(block))[:, PACKET_CIRCUIT:]

        return self.sealed(self.either(), fill)

    def builds(self) -> int:
        """Build records that open for nobody, whole sevens of them and single ones, reliably."""
        return self._control_cells(KIND_BUILD)

    def answers(self) -> int:
        """Answers that nobody waits for."""
        return self._control_cells(KIND_ANSWER)

    def _control_cells(self, kind: int) -> int:
        peer, rng = self.either(), self.ground.rng
        link, session = self.session(peer)
        if link is None:
            return 0
        sent = 0
        for _ in range(4):
            circuit = rng.randrange(1, 1 << 31)
            for slot in range(rng.choice((1, BUILD_SLOTS, BUILD_SLOTS))):
                sent += peer.node.links.send_cell(link, session, kind, slot, circuit, rng.randbytes(CELL_SIZE))
        peer.turn()
        return sent

    def control(self) -> int:
        """Frames of the link that are allowed and mean harm: pings, ends of circuits that are not ours, windows of any size."""
        rng = self.ground.rng

        def frame() -> Any:
            kind = rng.randrange(5)
            if kind == 0:
                return Ping(rng.getrandbits(64))
            if kind == 1:
                return Destroy(rng.getrandbits(32), rng.randrange(256))
            if kind == 2:
                return ReceiveWindow(rng.choice((0, 1, rng.getrandbits(32))))
            return Settings(rng.getrandbits(16), rng.getrandbits(32)) if kind == 3 else Pong(rng.getrandbits(64))

        peer = self.either()
        link, session = self.session(peer)
        if link is None:
            return 0
        key = (link.sending, int(peer.node.columns["sessions"][session]["index"]))
        sent = 0
        for _ in range(16):
            sent += link.channels[key].send_frames([frame() for _ in range(rng.randrange(1, 40))]) >= 0
        peer.node.links._busy.add((link.tag, *key))  # noqa: SLF001 (its channel has something under way)
        peer.turn()
        return sent

    def bad_frames(self) -> int:
        """One packet of the link's own frames that breaks a rule; the link ends by it."""
        rng = self.ground.rng

        def fill(block: Any) -> None:
            block[:, PACKET_TYPE] = rng.choice((HEADER_FRAMES, header_byte(1, slot=1)))
            block[:, PACKET_PATH] = rng.randrange(256) if rng.random() < 0.2 else 0
            body = bytes((rng.choice(FRAME_TYPES),)) + rng.randbytes(rng.randrange(1, 64))
            block[:, PACKET_CELL : PACKET_CELL + len(body)] = np.frombuffer(body, np.uint8)

        peer = self.client
        sent = self.sealed(peer, fill, 1)
        if sent and (link := peer.node.links.find(self.ground.node_of(self.victim).id)):
            peer.until(lambda: link is not peer.node.links.find(link.node), 0.02)
            peer.node.links.on_lost(link.tag, time.monotonic_ns())  # whether or not it ended there: the next one is new
        return sent

    # ------------------------------------------------------------ an authenticated end of a circuit

    def opened_cells(self) -> int:
        """Our own circuit's cells, opened by its last hop: frames cut short, unknown, or of nonsense."""
        node, rng = self.end.node, self.ground.rng
        if not self.end.until(lambda: (self.relay.turn(), node.circuits(ROLE_CLIENT))[1], CIRCUIT_LIMIT):
            return 0
        ready = node.circuits(ROLE_CLIENT)
        connection = int(node.columns["circuits"][ready[0]]["connection"]) - 1
        slots = node.pool.take(FEW)
        view = node.pool.packets.reshape(-1, PACKET_SIZE)
        first = rng.randrange(1 << 10, 1 << 19)
        for k, slot in enumerate(slots.tolist()):
            frames = bytes((rng.choice(FRAME_TYPES),)) + rng.randbytes(rng.randrange(1, FRAMES_SIZE))
            plain = (first + k).to_bytes(8, "big") + bytes(8) + frames.ljust(FRAMES_SIZE, b"\0")
            view[slot, PACKET_CELL : PACKET_CELL + CELL_SIZE] = np.frombuffer(plain, np.uint8)
        node.batch.wrap(slots, np.full(len(slots), connection, np.int64), len(slots), time.monotonic_ns())
        self.end.turn()
        return FEW


# Stage: its share of all packets, and counters of which at least one must rise by it.
STAGES: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "stranger": (0.32, ("dropped_forged_handshake",)),
    "odd_size": (0.005, ("odd_size",)),
    "handshake": (0.003, ("dropped_bad_handshake", "dropped_bad_header", "dropped_no_cookie", "dropped_over_quota")),
    "handshake_again": (0.05, ("dropped_replayed_handshake",)),
    "real_cid": (0.25, ("dropped_bad_tag",)),
    "replay": (0.12, ("dropped_replayed",)),
    "sealed_junk": (0.12, ("dropped_bad_header",)),
    "cells": (0.12, ("dropped_unknown_circuit",)),
    "builds": (0.008, ("dropped_bad_build",)),
    "answers": (0.005, ("dropped_unknown_circuit",)),
    "control": (0.004, ()),
    "bad_frames": (0.0004, ("dropped_bad_frame",)),
    "opened_cells": (0.0002, ("dropped_bad_frame",)),
}


def run(hostile: Hostile, total: int) -> None:
    """Send so many packets, stage by stage in an order drawn from the seed; the victim is given time to take each."""
    chunks = [name for name, (share, _) in STAGES.items() for _ in range(max(2, int(total * share / _size(name))))]
    hostile.ground.rng.shuffle(chunks)
    done = 0
    for name in chunks:
        if done >= total:
            break
        sent = getattr(hostile, name)()
        hostile.sent[name] += sent
        done += sent
        hostile.turn()
        if not settle(hostile.port):
            hostile.stuck += 1


def _size(name: str) -> int:
    """Packets of one chunk of a stage, about."""
    sizes = {"odd_size": FEW, "handshake": FEW, "opened_cells": FEW, "bad_frames": 1, "builds": 20, "answers": 20, "control": 16}
    return sizes.get(name, CHUNK)
