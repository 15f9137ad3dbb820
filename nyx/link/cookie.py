"""Cookies: a responder under load asks a stranger to prove that packets reach the address he writes from.

Place on a packet's way: between the replay table and the first public-key operation of a link handshake. The answer has 1280
bytes, as its cause; nobody without the responder's descriptor can tell it from noise, and only who sent the initiation finds it,
by its CID. A cookie is a MAC over address and port under a secret of two minutes, so the responder keeps nothing, and every
worker, in every life, knows the cookies of the others. The next initiation carries mac2, made with the cookie.
Source: docs/protocol.md, "Cookie answer". Clock (`wall`, Unix seconds) and entropy are arguments.
"""

import hashlib
import hmac
from functools import lru_cache
from typing import Final

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from nyx.crypto import schedule
from nyx.crypto.kem import Entropy
from nyx.crypto.keys import PublicKeys
from nyx.wire.geometry import CID_SIZE, INIT_MAC1, INIT_MAC2, MAC_SIZE, PACKET_SIZE

COOKIE_SLOT: Final = 120  # seconds; a cookie is good for the rest of its slot and for the next
NONCE: Final = CID_SIZE  # where the nonce begins
SEALED: Final = NONCE + 12
FILL: Final = SEALED + 2 * MAC_SIZE


@lru_cache(maxsize=1024)
def _key(public: PublicKeys) -> bytes:
    return schedule.digest(b"nyx-cookie", public.link_x25519, public.link_ek)


@lru_cache(maxsize=4)
def _secret(boot_secret: bytes, slot: int) -> bytes:
    return schedule.digest(b"nyx-cookie-secret", boot_secret, slot.to_bytes(8, "big"))


def cookie_cid(cid: bytes, public: PublicKeys) -> bytes:
    """The CID under which a cookie for the initiation with this CID travels."""
    return hashlib.blake2b(cid, digest_size=CID_SIZE, key=_key(public)).digest()


def mac2(packet: bytes, cookie: bytes) -> bytes:
    """What stands in the last 16 bytes of an initiation made with this cookie."""
    return hashlib.blake2b(packet[:INIT_MAC2], digest_size=MAC_SIZE, key=cookie).digest()


class CookieJar:
    """The responder's side. `boot_secret` outlives workers, so that a cookie of one life is good in the next."""

    def __init__(self, public: PublicKeys, boot_secret: bytes, entropy: Entropy) -> None:
        self._public = public
        self._boot_secret = boot_secret
        self._entropy = entropy

    def __repr__(self) -> str:
        return "CookieJar()"

    def _cookie(self, address: bytes, slot: int) -> bytes:
        return hashlib.blake2b(address, digest_size=MAC_SIZE, key=_secret(self._boot_secret, slot)).digest()

    def proven(self, packet: bytes, address: bytes, wall: int) -> bool:
        """Whether mac2 was made with a cookie that was sent to this address in this slot or the last."""
        slot = wall // COOKIE_SLOT
        return any(
            hmac.compare_digest(mac2(packet, self._cookie(address, near)), packet[INIT_MAC2:]) for near in (slot, slot - 1)
        )

    def answer(self, packet: bytes, address: bytes, wall: int) -> bytes:
        """The 1280 bytes to send to the address from which this initiation came."""
        noise = self._entropy(PACKET_SIZE - CID_SIZE - 2 * MAC_SIZE)
        nonce, filling = noise[: SEALED - NONCE], noise[SEALED - NONCE :]
        cookie = self._cookie(address, wall // COOKIE_SLOT)
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(cookie, packet[INIT_MAC1:INIT_MAC2], nonce, _key(self._public))
        return cookie_cid(packet[:CID_SIZE], self._public) + nonce + sealed + filling


def open_cookie(answer: bytes, packet: bytes, public: PublicKeys) -> bytes | None:
    """The cookie that `public` sent in answer to our initiation `packet`; None when somebody else made the answer."""
    if len(answer) != PACKET_SIZE or answer[:CID_SIZE] != cookie_cid(packet[:CID_SIZE], public):
        return None
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(
            answer[SEALED:FILL], packet[INIT_MAC1:INIT_MAC2], answer[NONCE:SEALED], _key(public)
        )
    except CryptoError:
        return None
