"""Both ends of the link handshake: strangers' packets, and bodies under the right keys that break rules.

The first byte chooses: 0 is a raw packet, anything else has the rest as the sealed body (its bits choose relay or client).
"""

import copy
import random
from typing import Final

from nyx.columns import allocate
from nyx.crypto.keys import StaticKeys
from nyx.link.handshake import HandshakeError, Initiator, LinkSecrets, Response, check_mac1, respond
from nyx.link.initiations import ReplayTable, replay_columns
from nyx.wire.codes import Drop
from nyx.wire.geometry import ANSWER_BODY_SIZE, INIT_BODY_SIZE, PACKET_SIZE, SESSIONS_PER_LINK
from tests.fuzz.script import Script
from tests.reference import link_handshake as twin

NOW: Final = 1_900_000_000
_RNG: Final = random.Random(11)
_ME: Final = StaticKeys.generate(_RNG.randbytes)
_RELAY: Final = StaticKeys.generate(_RNG.randbytes)
_DIRECTORY: Final = {_RELAY.public.link_x25519: _RELAY.public}
_CIDS: Final = [_RNG.randbytes(12) for _ in range(4)]


def _node(keys: StaticKeys) -> dict[str, bytes]:
    found: dict[str, bytes] = twin.node(keys.public.node_id, keys.link.to_bytes()[:32], keys.link.kem.seed)
    return found


_TWIN: Final = _node(_ME)
_ATTEMPT: Final = Initiator(_ME.public, None, [1, 2], _CIDS, _RNG.randbytes, NOW)
_, _MEMORY = twin.open_initiation(_ATTEMPT.packet, _TWIN)


def _respond(packet: bytes) -> Response | None:
    try:
        return respond(packet, _ME, [1, 2], _CIDS, random.Random(5).randbytes, NOW, _DIRECTORY.get, 192)
    except HandshakeError as error:
        assert error.drop in Drop
        return None


def responder(data: bytes) -> bool:
    """Silence, or an answer of one packet; a second copy meets silence."""
    script = Script(data)
    if script.number() == 0:
        packet = script.rest()[:PACKET_SIZE]
        _respond(packet)
        assert not check_mac1(packet, _ME.public, NOW)
        return False
    packet, memory = twin.initiate(_TWIN, None, script.take(INIT_BODY_SIZE), random.Random(3).randbytes(32), NOW)
    assert check_mac1(packet, _ME.public, NOW)
    table = ReplayTable(allocate(replay_columns(64))["handshakes_seen"], random.Random(4).randbytes)
    assert not table.seen(packet, NOW)
    assert table.seen(packet, NOW)
    found = _respond(packet)
    if found is None:
        return False
    assert len(found.packet) == PACKET_SIZE
    _check(found.secrets)
    if found.secrets.peer is None:
        _, ck, h2 = twin.open_answer(found.packet, memory)
        assert (ck, h2) == (found.secrets.ck, found.secrets.h2)
    return True


def initiator(data: bytes) -> bool:
    """A forged answer leaves the attempt as it was; a true one gives keys."""
    script = Script(data)
    attempt = copy.copy(_ATTEMPT)
    before = dict(vars(attempt))
    if script.number() == 0:
        packet = attempt.answer_cid + script.rest()[: PACKET_SIZE - 12]
    else:
        body = script.take(ANSWER_BODY_SIZE)
        packet, _, _ = twin.answer(_MEMORY, _TWIN, None, body, random.Random(6).randbytes(32), attempt.answer_cid)
    try:
        found = attempt.finish(packet)
    except HandshakeError as error:
        assert error.drop in Drop
        assert vars(attempt) == before
        return False
    _check(found)
    return True


def _check(secrets: LinkSecrets) -> None:
    assert secrets.suite in (1, 2)
    assert len(set(secrets.peer_cids)) == SESSIONS_PER_LINK
    assert len({secrets.session_keys(i).send_key for i in range(SESSIONS_PER_LINK)}) == SESSIONS_PER_LINK
