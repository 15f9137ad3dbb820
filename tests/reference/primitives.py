"""Primitives of the twin, as functions from bytes to bytes."""

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.poly1305 import Poly1305
from pyaegis import Aegis128L, Aegis256, DecryptionError

M64 = (1 << 64) - 1
M32 = (1 << 32) - 1


def xor(a: bytes, b: bytes) -> bytes:
    assert len(a) == len(b)
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _rotl64(x: int, n: int) -> int:
    return (x << n | x >> (64 - n)) & M64


def siphash(key: bytes, message: bytes, size: int) -> bytes:
    """SipHash-2-4 with 8 or 16 bytes of output."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    if size == 16:
        v[1] ^= 0xEE

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & M64
            v[2] = (v[2] + v[3]) & M64
            v[1] = _rotl64(v[1], 13) ^ v[0]
            v[3] = _rotl64(v[3], 16) ^ v[2]
            v[0] = _rotl64(v[0], 32)
            v[2] = (v[2] + v[1]) & M64
            v[0] = (v[0] + v[3]) & M64
            v[1] = _rotl64(v[1], 17) ^ v[2]
            v[3] = _rotl64(v[3], 21) ^ v[0]
            v[2] = _rotl64(v[2], 32)

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE if size == 16 else 0xFF
    rounds(4)
    out = struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])
    if size == 16:
        v[1] ^= 0xDD
        rounds(4)
        out += struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])
    return out


def hchacha20(key: bytes, data: bytes, constant: bytes = b"expand 32-byte k") -> bytes:
    s = list(struct.unpack("<16I", constant + key + data))

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & M32
            t = s[z] ^ s[x]
            s[z] = (t << n | t >> (32 - n)) & M32

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *s[:4], *s[12:])


def chacha20_xor(key: bytes, nonce: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(data)


def poly1305(key: bytes, data: bytes) -> bytes:
    return Poly1305.generate_tag(key, data)


def chacha20poly1305_seal(key: bytes, nonce: bytes, data: bytes, ad: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(nonce, data, ad)


def chacha20poly1305_open(key: bytes, nonce: bytes, data: bytes, ad: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, data, ad)
    except InvalidTag:
        return None


def aegis128l_seal(key: bytes, nonce: bytes, data: bytes, ad: bytes) -> tuple[bytes, bytes]:
    """Ciphertext and the 32-byte tag."""
    ciphertext, tag = Aegis128L(tag_size=32).encrypt_detached(key, nonce, data, ad)
    return bytes(ciphertext), bytes(tag)


def aegis128l_open(key: bytes, nonce: bytes, data: bytes, tag: bytes, ad: bytes) -> bytes | None:
    try:
        return bytes(Aegis128L(tag_size=32).decrypt_detached(key, nonce, data, tag, ad))
    except DecryptionError:
        return None


def aegis256_seal(key: bytes, nonce: bytes, data: bytes, ad: bytes) -> tuple[bytes, bytes]:
    """Ciphertext and the 32-byte tag."""
    ciphertext, tag = Aegis256(tag_size=32).encrypt_detached(key, nonce, data, ad)
    return bytes(ciphertext), bytes(tag)


def aegis256_open(key: bytes, nonce: bytes, data: bytes, tag: bytes, ad: bytes) -> bytes | None:
    try:
        return bytes(Aegis256(tag_size=32).decrypt_detached(key, nonce, data, tag, ad))
    except DecryptionError:
        return None
