"""Strangers who look for relays: junk, wrong and right mac1, recorded initiations. None gets an answer.

Everything is sent from one socket, to which every answer would come: what it hears is all that the relay said. A whole and fresh
initiation is answered once, by as many bytes; it stands beside the probes to show that the relay was there to answer.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.attack.peer import Ground, Peer, settle
from bench.chaos.look import Member, counters
from nyx.crypto import schedule
from nyx.crypto.keys import PublicKeys
from nyx.link.handshake import MAC_SLOT, Initiator
from nyx.wire.geometry import INIT_MAC1, INIT_MAC2, MAC_SIZE, PACKET_SIZE, SESSIONS_PER_LINK
from shards.address import pack

CHUNK: Final = 96  # packets between two looks at the victim's socket
FRESH: Final = 16  # initiations that are answered, and then replayed
EVERY: Final = 64  # so many chunks, then one that costs us and the victim more: right mac1 and junk behind it

Block = NDArray[np.uint8]


@dataclass
class Found:
    """Packets sent by kind, packets heard, and what the victim counted.

    A right mac1 may be answered by a cookie when a relay is under load, one packet for one: `mac1_answered` counts apart.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: int = 0  # of fresh initiations
    mac1_answered: int = 0  # of junk under a right mac1
    heard: int = 0  # of everything else
    drops: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes out over bytes in, of all that nobody authenticated."""
        return (self.answered + self.mac1_answered + self.heard) / max(1, self.sent.total())


def with_mac1(packet: bytes, public: PublicKeys, wall: int) -> bytes:
    """Bytes 0-1247 of a packet under the mac1 that anybody who knows the descriptor can make."""
    key = schedule.digest(b"nyx-mac1", public.link_x25519, public.link_ek, (wall // MAC_SLOT).to_bytes(8, "big"))
    mac = hashlib.blake2b(packet[:INIT_MAC1], digest_size=MAC_SIZE, key=key).digest()
    return packet[:INIT_MAC1] + mac + packet[INIT_MAC2:]


def junk(ground: Ground, count: int) -> Block:
    """Packets that cannot be told from those of the network."""
    found: Block = ground.random.integers(0, 256, (count, PACKET_SIZE), np.uint8)
    return found


def rows(packets: list[bytes]) -> Block:
    """Packets as rows."""
    return np.frombuffer(b"".join(packets), np.uint8).reshape(-1, PACKET_SIZE)


def probe(ground: Ground, alias: str, members: list[Member], total: int) -> Found:
    """So many probes to one relay."""
    found, peer = Found(), Peer(ground)
    victim = ground.node_of(alias)
    port = int(victim.addresses[0][1])
    before = counters([member for member in members if member.alias == alias])
    recorded = _fresh(ground, peer, victim, found)
    kinds: dict[str, Callable[[], Block]] = {
        "junk": lambda: junk(ground, CHUNK),
        "wrong mac1": lambda: _flipped(ground, recorded),
        "replayed initiation": lambda: rows([recorded[k % len(recorded)] for k in range(CHUNK)]),
    }
    names = list(kinds)
    for number in range(max(1, total // CHUNK)):
        kind = names[number % len(names)]
        settle(port)
        found.sent[kind] += peer.blast(port, kinds[kind]())
        found.heard += _hear(peer)
    found.heard += _rest(peer, port)
    for _ in range(max(1, total // CHUNK // EVERY)):
        settle(port)
        found.sent["mac1 over junk"] += peer.blast(port, _authentic_junk(ground, victim.public))
    found.mac1_answered = _rest(peer, port)
    after = counters([member for member in members if member.alias == alias])
    found.drops = {
        name: after[name] - before[name] for name in after if name.startswith("dropped") and after[name] > before[name]
    }
    peer.close()
    return found


def _fresh(ground: Ground, peer: Peer, victim: Any, found: Found) -> list[bytes]:
    """Whole initiations of a client, each answered once; and nothing more is said to who then shows no key."""
    made = []
    for _ in range(FRESH):
        cids = [ground.rng.randbytes(12) for _ in range(SESSIONS_PER_LINK)]
        attempt = Initiator(victim.public, None, [1], cids, ground.rng.randbytes, int(time.time()))
        peer.air.send_raw(_raw(victim), attempt.packet)
        made.append(attempt.packet)
        found.sent["fresh initiation"] += 1
    end = time.monotonic() + 3
    while found.answered < FRESH and time.monotonic() < end:
        time.sleep(0.01)
        found.answered += _hear(peer)
    return made


def _raw(victim: Any) -> bytes:
    host, port = victim.addresses[0]
    return pack(host, port, 2)


def _rest(peer: Peer, port: int) -> int:
    """What comes back once the victim has taken everything."""
    settle(port, most=0)
    time.sleep(0.5)
    return _hear(peer)


def _hear(peer: Peer) -> int:
    """Packets that came back; nobody looks at them."""
    heard = 0
    while n := peer.air.receive():
        peer.node.pool.give(peer.air.slots[:n])
        heard += n
    return heard


def _flipped(ground: Ground, recorded: list[bytes]) -> Block:
    """Recorded initiations with one bit changed below mac1, or in it."""
    block = rows([recorded[k % len(recorded)] for k in range(CHUNK)]).copy()
    bits = ground.random.integers(8 * 12, 8 * INIT_MAC2, CHUNK)
    block[np.arange(CHUNK), bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    return block


def _authentic_junk(ground: Ground, public: PublicKeys) -> Block:
    wall = int(time.time())
    return rows([with_mac1(packet.tobytes(), public, wall) for packet in junk(ground, CHUNK)])
