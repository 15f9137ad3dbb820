"""Slow twin of nyx.crypto.{kem,schedule}: written from docs/protocol.md and RFC 5869, 7539, with other libraries.

X25519 and the AEAD come from `cryptography` (the code: libsodium), ML-KEM from kyber-py (the code: `cryptography`), BLAKE2b
from libsodium (the code: hashlib), ChaCha20 and HKDF are plain Python. It shares no module with nyx.
"""

import hashlib
import struct

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from kyber_py.ml_kem import ML_KEM_768
from nacl.bindings import crypto_generichash_blake2b_salt_personal


def sha256(data):
    return hashlib.sha256(data).digest()


def hmac_sha256(key, message):
    if len(key) > 64:
        key = sha256(key)
    key = key.ljust(64, b"\0")
    inner = sha256(bytes(k ^ 0x36 for k in key) + message)
    return sha256(bytes(k ^ 0x5C for k in key) + inner)


def extract(salt, ikm):
    return hmac_sha256(salt, ikm)


def expand(prk, info, length):
    out, block, counter = b"", b"", 0
    while len(out) < length:
        counter += 1
        block = hmac_sha256(prk, block + info + bytes([counter]))
        out += block
    return out[:length]


def blake2b(key, data, size):
    return crypto_generichash_blake2b_salt_personal(data, digest_size=size, key=key)


def dh(private, public):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def dh_public(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def kem_public(seed):
    return ML_KEM_768.key_derive(seed)[0]


def decapsulate(seed, ciphertext):
    return ML_KEM_768.decaps(ML_KEM_768.key_derive(seed)[1], ciphertext)


def encapsulate(ek):
    return ML_KEM_768.encaps(ek)


def seal(key, ad, plain):
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, ad)


def unseal(key, ad, sealed):
    return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, ad)


def _quarter(s, a, b, c, d):
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & 0xFFFFFFFF
        v = s[z] ^ s[x]
        s[z] = (v << turn | v >> (32 - turn)) & 0xFFFFFFFF


def chacha20(key, nonce, data):
    """RFC 8439, block counter from 0."""
    out = bytearray()
    for counter in range(-(-len(data) // 64)):
        start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
        s = list(start)
        for _ in range(10):
            for i in range(4):
                _quarter(s, i, 4 + i, 8 + i, 12 + i)
            for i in range(4):
                _quarter(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
        out += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(s, start, strict=True)))
    return bytes(a ^ b for a, b in zip(data, out, strict=False))
