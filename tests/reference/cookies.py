"""The responder's side of cookies, plain: from docs/protocol.md, "Cookie answer"."""

import hashlib

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.reference.primitives import siphash

SLOT = 120


def cookie(boot_secret: bytes, address: bytes, slot: int) -> bytes:
    """`address`: port and 4 or 16 bytes."""
    secret = hashlib.sha256(b"nyx-cookie-secret" + boot_secret + slot.to_bytes(8, "big")).digest()[:16]
    return siphash(secret, address, 16)


def mac2(packet: bytes, found: bytes) -> bytes:
    return siphash(found, packet[1248:1264], 16)


def seal_key(static: bytes, ek: bytes) -> bytes:
    return hashlib.sha256(b"nyx-cookie" + static + ek).digest()


def answer(packet: bytes, found: bytes, key: bytes, noise: bytes) -> bytes:
    """`noise`: the 12 bytes of nonce and the 1224 of filling."""
    sealed = ChaCha20Poly1305(key).encrypt(noise[:12], found, packet[1248:1264])
    return hashlib.blake2b(packet[:12], digest_size=12, key=key).digest() + noise[:12] + sealed + noise[12:]


def opened(reply: bytes, packet: bytes, key: bytes) -> bytes:
    """The cookie in an answer. Raises AssertionError, cryptography's InvalidTag."""
    assert len(reply) == 1280
    assert reply[:12] == hashlib.blake2b(packet[:12], digest_size=12, key=key).digest()
    return ChaCha20Poly1305(key).decrypt(reply[12:24], reply[24:56], packet[1248:1264])
