"""A link that stands: its control channel, the exchange that renews its keys, the sealed packets of a session."""

import random
from typing import Any, Final

import numpy as np

from nyx.columns import Columns, allocate
from nyx.crypto.kem import KemKey
from nyx.crypto.replay import WINDOW_WORDS
from nyx.crypto.scratch import new_scratch
from nyx.errors import RemoteProtocolError
from nyx.link.channel import CONTROL, Channel
from nyx.link.frames import Crypto, CryptoMessage, Destroy, NewCid, Ping
from nyx.link.handshake import LinkSecrets
from nyx.link.seal import open_packets, seal_packets
from nyx.link.session import SESSION_LIVE, check_session, session_columns
from nyx.link.upgrade import LinkUpgrade, encode_hello
from nyx.wire.codes import Drop
from nyx.wire.geometry import CELL_SIZE, LINK_PAYLOAD_SIZE, PACKET_SIZE
from tests.fuzz.script import Script

MS: Final = 1_000_000
_HEADERS: Final = (0x40, 0x41, 0x08, 0x0B, 0x10, 0x16, 0x00, 0xC0)


def channel(data: bytes) -> bool:
    """Any order of calls and packets: what is refused is not remembered, nothing grows, and the record is enough to go on."""
    script, memory, now, taken = Script(data), np.zeros(1, CONTROL)[0], 0, 0
    here = Channel(10 * MS, memory)
    while script.more():
        match script.number() % 8:
            case 0:
                here.send_frames([Ping(script.number()), Destroy(script.number(4), 1)])
            case 1:
                here.send_cell(1 + script.number() % 2, script.number() % 7, 1 + script.number(), bytes(CELL_SIZE))
            case 2:
                now += script.number(2) * MS
                here.handle_timeout(now)
            case 3:
                here.poll_transmit(now)
            case _:
                taken += _packet(here, memory, script, now) is Drop.OK
        while here.next_event() is not None:
            pass
        here.check_invariants()
    again = Channel.resume(memory.copy(), 10 * MS)
    again.check_invariants()
    return taken > 0


def _packet(here: Channel, memory: Any, script: Script, now: int) -> Drop:
    choice = script.number()
    header = _HEADERS[choice % 8] if choice < 0x80 else script.number()
    path, number, size = script.number(), script.number(2), script.number(2) % LINK_PAYLOAD_SIZE
    before = memory.tobytes()
    drop = here.receive(header, path, number, script.take(size).ljust(LINK_PAYLOAD_SIZE, b"\0"), now)
    if drop is not Drop.OK:
        assert memory.tobytes() == before
    return drop


# ---------------------------------------------------------------- in-session key exchange

_RNG: Final = random.Random(21)
_PEER: Final = KemKey(_RNG.randbytes(64))
_OURS: Final = [_RNG.randbytes(12) for _ in range(4)]
_OLD: Final = tuple(_RNG.randbytes(12) for _ in range(8))


def upgrade(data: bytes) -> bool:
    """Any frames in any order: keys once or never, and no frame after them makes others."""
    script = Script(data)
    choice = script.number()
    secrets = LinkSecrets(bool(choice & 1), 2, None, _OLD[:4], _OLD[4:], bytes(32), bytes(32), 0, 0, generation=choice >> 1 & 1)
    here = Channel(10 * MS)
    exchange = LinkUpgrade(secrets, here, _OURS, random.Random(2).randbytes)
    assert exchange.start()
    made = []
    try:
        while script.more():
            found = exchange.receive(_frame(script))
            if found is not None:
                made.append(found)
            assert here.waiting <= 4
    except RemoteProtocolError:
        pass
    assert len(made) <= 1
    assert exchange.secrets is (made[0] if made else None)
    for found in made:
        assert (found.generation, found.local_cids) == (secrets.generation + 1, tuple(_OURS))
        assert found.ck != secrets.ck
    return bool(made)


def _frame(script: Script) -> Crypto | NewCid | Ping:
    match script.number() % 8:
        case 0:
            return Crypto(CryptoMessage.HELLO, encode_hello())
        case 1:
            return Crypto(CryptoMessage.KEM_EK, _PEER.public)
        case 2:
            return Crypto(CryptoMessage.KEM_CT, script.take(4) * 272)
        case 3 | 4:
            return NewCid(script.number() % 4, script.take(4) * 3)
        case 5:
            return Crypto(CryptoMessage.HELLO, script.take(script.number()))
        case 6:
            return Crypto(script.number() % 3, script.take(script.number(2) % 1300))
        case _:
            return Ping(script.number())


# ---------------------------------------------------------------- sealed packets


def _session(initiator: int, suite: int) -> Columns:
    columns = allocate(session_columns(1))
    row = columns["sessions"][0]
    row["suite"], row["initiator"], row["state"] = suite, initiator, SESSION_LIVE
    for name, value in (("send_key", initiator), ("receive_key", 1 - initiator), ("send_mask", 5), ("receive_mask", 5)):
        row[name] = value + 1
    return columns


_SENT: Final = {suite: _session(1, suite) for suite in (1, 2)}


def _sealed(suite: int, payload: bytes) -> bytes:
    """A packet of the peer whose header bytes and payload are these."""
    pool = np.frombuffer(bytearray(bytes(12) + payload.ljust(PACKET_SIZE - 12, b"\0")), np.uint8)
    columns = {name: column.copy() for name, column in _SENT[suite].items()}
    one = np.zeros(1, np.int64)
    assert seal_packets(pool, one, one, 1, columns["sessions"], 1, new_scratch()) == 0
    return pool.tobytes()


def link_packets(data: bytes) -> bool:
    """A packet that does not open leaves its session bit for bit; one that does, opens once."""
    script = Script(data)
    choice = script.number()
    suite, honest, flip = 1 + (choice & 1), choice & 2, script.number(2)
    rest = script.rest()[: PACKET_SIZE - 12]
    packet = bytearray(_sealed(suite, rest) if honest else rest.ljust(PACKET_SIZE, b"\0"))
    flipped = honest and flip < 8 * (PACKET_SIZE - 12)
    if flipped:
        packet[12 + flip // 8] ^= 1 << flip % 8
    columns = _session(0, suite)
    first = _open(columns, bytes(packet))
    assert first == (Drop.OK if honest and not flipped else Drop.BAD_TAG)
    assert _open(columns, bytes(packet)) == (Drop.REPLAYED if first == Drop.OK else Drop.BAD_TAG)
    return first == Drop.OK


def _open(columns: Columns, packet: bytes) -> int:
    pool, codes, one = np.frombuffer(bytearray(packet), np.uint8), np.full(1, -1, np.int64), np.zeros(1, np.int64)
    before = {name: column.tobytes() for name, column in columns.items()}  # a copy would not copy what lies between fields
    open_packets(pool, one, one, 1, columns["sessions"], columns["session_windows"], codes, 7, new_scratch())
    check_session(columns, 0)
    assert columns["session_windows"].size == WINDOW_WORDS
    if codes[0] != 0:
        assert all(before[name] == column.tobytes() for name, column in columns.items())
    return int(codes[0])
