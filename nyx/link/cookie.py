"""Cookies: a responder under load asks a stranger to prove that packets reach the address he writes from.

Place on a packet's way: between the replay table and the first public-key operation of a link handshake. The answer has 1280
bytes, as its cause; nobody without the responder's descriptor can tell it from noise, and only who sent the initiation finds it,
by its CID. A cookie is a MAC over address and port under a secret of two minutes, so the responder keeps nothing, and every
worker, in every life, knows the cookies of the others. The next initiation carries mac2, made with the cookie. The responder's
side is a kernel, `shards/kernels/challenge.py`. Source: docs/protocol.md, "Cookie answer".
"""

import hashlib
from functools import lru_cache
from typing import Final

from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_shorthash_siphashx24
from nacl.exceptions import CryptoError

from nyx.crypto import schedule
from nyx.crypto.keys import PublicKeys
from nyx.wire.geometry import CID_SIZE, INIT_MAC1, INIT_MAC2, MAC_SIZE, PACKET_SIZE

COOKIE_SLOT: Final = 120  # seconds; a cookie is good for the rest of its slot and for the next
NONCE: Final = CID_SIZE  # where the nonce begins
SEALED: Final = NONCE + 12
FILL: Final = SEALED + 2 * MAC_SIZE


@lru_cache(maxsize=1024)
def seal_key(public: PublicKeys) -> bytes:
    """What a relay's cookie answers are sealed under: it hides them from who lacks the descriptor."""
    return schedule.digest(b"nyx-cookie", public.link_x25519, public.link_ek)


def cookie_secret(boot_secret: bytes, slot: int) -> bytes:
    """What a relay's cookies of a time slot are made under. `boot_secret` outlives workers, so cookies do."""
    return schedule.digest(b"nyx-cookie-secret", boot_secret, slot.to_bytes(8, "big"))[:MAC_SIZE]


def cookie_cid(cid: bytes, public: PublicKeys) -> bytes:
    """The CID under which a cookie for the initiation with this CID travels."""
    return hashlib.blake2b(cid, digest_size=CID_SIZE, key=seal_key(public)).digest()


def mac2(packet: bytes, cookie: bytes) -> bytes:
    """What stands in the last 16 bytes of an initiation made with this cookie."""
    return crypto_shorthash_siphashx24(packet[INIT_MAC1:INIT_MAC2], cookie)


def open_cookie(answer: bytes, packet: bytes, public: PublicKeys) -> bytes | None:
    """The cookie that `public` sent in answer to our initiation `packet`; None when somebody else made the answer."""
    if len(answer) != PACKET_SIZE or answer[:CID_SIZE] != cookie_cid(packet[:CID_SIZE], public):
        return None
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(
            answer[SEALED:FILL], packet[INIT_MAC1:INIT_MAC2], answer[NONCE:SEALED], seal_key(public)
        )
    except CryptoError:
        return None
