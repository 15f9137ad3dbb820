"""What the workers of one node tell each other: small JSON messages through the rings, in packet slots.

Place on a packet's way: none. A message may carry link secrets: it never leaves the node's shared memory, and its slot is
zeroed as soon as it is read. Operations: want, unreachable, accept, link, confirmed, lost (`shards/links.py`).
"""

from typing import Any, Final

import orjson

from nyx.crypto.keys import PublicKeys
from nyx.errors import InternalError
from nyx.link.handshake import LinkSecrets
from nyx.wire.geometry import PACKET_SIZE

KIND_MESSAGE: Final = 1  # kind of a ring descriptor whose slot holds a message
_LENGTH: Final = 2


def encode(message: dict[str, Any]) -> bytes:
    """The bytes for a slot. Raises InternalError when they do not fit."""
    body = orjson.dumps(message)
    if len(body) + _LENGTH > PACKET_SIZE:
        raise InternalError(f"a message of {len(body)} bytes between workers")
    return len(body).to_bytes(_LENGTH, "big") + body


def decode(slot: bytes) -> dict[str, Any]:
    """The message in a slot."""
    found: dict[str, Any] = orjson.loads(slot[_LENGTH : _LENGTH + int.from_bytes(slot[:_LENGTH], "big")])
    return found


def pack_secrets(secrets: LinkSecrets) -> dict[str, Any]:
    """What another worker needs of a link's secrets; the peer's keys stay behind, its node id travels beside."""
    return {
        "initiator": secrets.initiator,
        "suite": secrets.suite,
        "local": [cid.hex() for cid in secrets.local_cids],
        "peer": [cid.hex() for cid in secrets.peer_cids],
        "ck": secrets.ck.hex(),
        "h2": secrets.h2.hex(),
        "window": secrets.receive_window,
        "clock": secrets.clock,
        "generation": secrets.generation,
    }


def unpack_secrets(packed: dict[str, Any], peer: PublicKeys | None = None) -> LinkSecrets:
    """The secrets again."""
    return LinkSecrets(
        initiator=packed["initiator"],
        suite=packed["suite"],
        peer=peer,
        local_cids=tuple(bytes.fromhex(cid) for cid in packed["local"]),
        peer_cids=tuple(bytes.fromhex(cid) for cid in packed["peer"]),
        ck=bytes.fromhex(packed["ck"]),
        h2=bytes.fromhex(packed["h2"]),
        receive_window=packed["window"],
        clock=packed["clock"],
        generation=packed["generation"],
    )
